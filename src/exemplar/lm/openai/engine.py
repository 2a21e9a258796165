"""The engine on a server with OpenAI's completions (vLLM, SGLang, llama-cpp-python and others).

A text is scored by having it echoed with its tokens' log-probabilities. The server tokenises, so
this engine never cuts a prompt: a text that is too long is refused by the server, and the
`PromptError` tells its words. What one request costs is the server's business; here equal texts
are sent once, several to a request and several requests at a time.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

from exemplar.errors import ModelError, PromptError
from exemplar.lm.base import LmStats
from exemplar.lm.meter import Meter
from exemplar.lm.openai.client import Client, RefusalError, parse
from exemplar.lm.openai.echo import ENDINGS, Echo, choose_label
from exemplar.lm.openai.lines import decode_line
from exemplar.lm.openai.scoring import EchoServer, refused

_CHUNK = 1024  # texts scored together within labels: bounds the memory, not the result

Pair = tuple[str, str]
T = TypeVar("T")
R = TypeVar("R")


class OpenAiLM:
    """A causal language model behind an OpenAI-compatible server; see `base.LanguageModel`.

    `max_length` is what callers fit prompts to; what a text may really have, the server decides.
    `batch_size` prompts go into one request, `concurrency` requests are under way at a time.
    """

    dtype = "server"

    def __init__(
        self,
        ref: str,
        *,
        api_key: str | None = None,
        max_length: int = 1024,
        concurrency: int = 8,
        batch_size: int = 16,
        max_retries: int = 5,
        timeout: float = 300.0,
    ) -> None:
        address = parse(ref)
        self.name = address.name
        self.max_length = max_length
        self.stats = LmStats()
        self._client = Client(address, api_key=api_key, timeout=timeout, max_retries=max_retries)
        self._server = EchoServer(self._client, batch_size)
        self._concurrency = concurrency
        self._counts: dict[str, int] = {}

    def count_tokens(self, text: str) -> int:
        """Return how many tokens `text` takes as a prompt, by the server's own count.

        A text that the server will not take whole is counted in halves, so that a caller learns
        that it is too long; that may be some tokens more. `PromptError` where it takes no half.
        """
        if text not in self._counts:
            try:
                count = self._client.complete([text], max_tokens=1).prompt_tokens
            except RefusalError as refusal:
                if len(text.encode()) <= self.max_length:  # has no more tokens than that
                    raise refused(refusal, None) from None
                middle = len(text) // 2
                count = self.count_tokens(text[:middle]) + self.count_tokens(text[middle:])
            if count is None:
                raise ModelError(
                    f"{self.name}: the server does not tell how many tokens a prompt has; expected "
                    "usage.prompt_tokens in a completion. Use a server that fills it in."
                )
            self._counts[text] = count
        return self._counts[text]

    def logprobs(
        self, prompts: Sequence[str], answers: Sequence[str], *, progress: str | None = None
    ) -> list[float]:
        """Return the mean log-probability of each answer's tokens; see `base.LanguageModel`.

        Nothing is cut: `PromptError` where the server refuses a text, for its length or otherwise.
        """
        pairs = list(zip(prompts, answers, strict=True))
        copies = Counter(pairs)
        first = {pair: index for index, pair in reversed(list(enumerate(pairs)))}
        for (prompt, answer), index in sorted(first.items(), key=lambda item: item[1]):
            _check(prompt, index)
            if not answer.strip():
                raise PromptError(
                    f"item {index}: the answer is empty, so it has no probability. Expected at "
                    "least one visible character.",
                    index=index,
                )
        distinct = sorted(first)  # a server with a prefix cache sees like beginnings together

        def score(batch: Sequence[Pair]) -> list[tuple[Pair, float, int]]:
            indices = [first[pair] for pair in batch]
            echoes = self._server.echoes([prompt + answer for prompt, answer in batch], indices)
            return [
                (pair, self._mean(echo, len(pair[0]), index), len(echo.ends))
                for pair, echo, index in zip(batch, echoes, indices, strict=True)
            ]

        results: dict[Pair, float] = {}
        size = self._server.probe() if pairs else 1
        with Meter(self.stats, f"scoring with {self.name}", len(pairs), progress) as meter:
            for scored in self._each(distinct, size, score):
                for pair, mean, tokens in scored:
                    results[pair] = mean
                    meter.done(copies[pair], given=copies[pair] * tokens, computed=tokens)
        return [results[pair] for pair in pairs]

    def generate(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = 64,
        labels: Sequence[str] | None = None,
        *,
        progress: str | None = None,
    ) -> list[str]:
        """Return the greedy continuation of each prompt; see `base.LanguageModel`."""
        if labels is not None and not all(labels or [""]):
            raise PromptError(f"labels are {list(labels)!r}; expected texts, none of them empty.")
        copies = Counter(prompts)
        first = {prompt: index for index, prompt in reversed(list(enumerate(prompts)))}
        for prompt, index in first.items():
            _check(prompt, index)
        size = self._server.probe() if prompts and labels is not None else 1
        with Meter(self.stats, f"decoding with {self.name}", len(prompts), progress) as meter:
            if labels is None:
                results = self._lines(first, copies, max_new_tokens, meter)
            else:
                results = self._labels(first, copies, list(dict.fromkeys(labels)), size, meter)
        return [results[prompt] for prompt in prompts]

    def _lines(
        self, first: Mapping[str, int], copies: Mapping[str, int], max_new: int, meter: Meter
    ) -> dict[str, str]:
        """Decode freely, one prompt a request: the server fills its batches by itself."""

        def line(batch: Sequence[str]) -> tuple[str, str, int]:
            [prompt] = batch
            try:
                return prompt, *decode_line(self._client, prompt, max_new)
            except RefusalError as refusal:
                raise refused(refusal, first[prompt]) from None

        results: dict[str, str] = {}
        for prompt, found, tokens in self._each(list(first), 1, line):
            results[prompt] = found
            meter.done(copies[prompt], given=copies[prompt] * tokens, computed=tokens)
        return results

    def _labels(
        self,
        first: Mapping[str, int],
        copies: Mapping[str, int],
        labels: list[str],
        size: int,
        meter: Meter,
    ) -> dict[str, str]:
        """Decode within the labels, from the log-probabilities of prompt + label."""
        continued = [a for a in labels if any(b != a and b.startswith(a) for b in labels)]
        endings = [label + ending for label in continued for ending in ENDINGS]
        options = list(dict.fromkeys(labels + endings))

        def echo(batch: Sequence[Pair]) -> list[tuple[Pair, Echo]]:
            texts, indices = [a + b for a, b in batch], [first[prompt] for prompt, _ in batch]
            return list(zip(batch, self._server.echoes(texts, indices), strict=True))

        prompts, results = sorted(first), {}
        step = max(1, _CHUNK // len(options))
        for begin in range(0, len(prompts), step):
            chunk = prompts[begin : begin + step]
            pairs = [(prompt, option) for prompt in chunk for option in options]
            echoes = dict(found for batch in self._each(pairs, size, echo) for found in batch)
            for prompt in chunk:
                own = {option: echoes[prompt, option] for option in options}
                chosen = choose_label(labels, own)
                if chosen is None:
                    raise _unpredicted(first[prompt])
                results[prompt] = labels[chosen]
                given = copies[prompt] * sum(len(own[label].ends) for label in labels)
                computed = sum(len(found.ends) for found in own.values())
                meter.done(copies[prompt], given=given, computed=computed)
        return results

    def _each(self, items: Sequence[T], size: int, work: Callable[[Sequence[T]], R]) -> Iterator[R]:
        """Yield `work(batch)` for batches of `size` items, whichever is done first."""
        with ThreadPoolExecutor(self._concurrency) as pool:
            batches = (items[begin : begin + size] for begin in range(0, len(items), size))
            futures = [pool.submit(work, batch) for batch in batches]
            try:
                for future in as_completed(futures):
                    yield future.result()
            finally:
                for future in futures:
                    future.cancel()

    def _mean(self, echo: Echo, prompt_length: int, index: int) -> float:
        values = [value for value in echo.answer(prompt_length) if value is not None]
        if not values or len(values) < len(echo.answer(prompt_length)):
            raise _unpredicted(index)
        return math.fsum(values) / len(values)


def _check(prompt: str, index: int) -> None:
    if not prompt:
        raise PromptError(
            f"item {index}: the prompt is empty, so nothing predicts the answer's first token. "
            "Expected a prompt that ends with a newline.",
            index=index,
        )


def _unpredicted(index: int) -> PromptError:
    return PromptError(
        f"item {index}: the answer's first token is the first of the whole text, so nothing "
        "predicts it. Expected a prompt with a token of its own, one that ends with a newline.",
        index=index,
    )
