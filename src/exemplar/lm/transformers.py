"""The engine on transformers: scoring and label decoding over packed prefix tries.

Candidates come first in a scoring prompt, so all queries that drew a candidate share it, and all
labels of a prompt share the prompt. `packing` lays the shared prefixes out once; here the model
runs over them, and the vocabulary projection only where an answer's token is predicted.

Legend: T nodes of a pack, U distinct nodes whose logits are read, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from exemplar.errors import PromptError
from exemplar.lm.base import LmStats
from exemplar.lm.decoding import LineDecoder, end_tokens
from exemplar.lm.encoding import Encoder, Scored
from exemplar.lm.labels import END, Prefix, branchings, descend
from exemplar.lm.meter import Meter
from exemplar.lm.reading import PackReader, Read

_LABEL_CHUNK = 128  # prompts decoded together within labels
_CHUNK = 2048  # sequences tokenised and packed together: bounds the memory, not the result

Pair = tuple[str, str]


class TransformersLM:
    """A causal language model of transformers; implements `base.LanguageModel`."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str,
        max_length: int = 1024,
        batch_tokens: int = 4096,
    ) -> None:
        self.name = name
        self.dtype = str(model.dtype).removeprefix("torch.")
        self.max_length = max_length
        self.stats = LmStats()
        self.model = model.eval()
        self.tokenizer = tokenizer
        self._encoder = Encoder(tokenizer)
        self.reader = PackReader(self.model, name=name, batch_tokens=batch_tokens)
        self.decoder = LineDecoder(self.reader, tokenizer, batch_tokens=batch_tokens)

    def count_tokens(self, text: str) -> int:
        """Return how many tokens `text` takes as a prompt."""
        return self._encoder.count(text)

    def logprobs(
        self, prompts: Sequence[str], answers: Sequence[str], *, progress: str | None = None
    ) -> list[float]:
        """Return the mean log-probability of each answer's tokens; see `base.LanguageModel`."""
        pairs = list(zip(prompts, answers, strict=True))
        copies = Counter(pairs)
        first = {pair: index for index, pair in reversed(list(enumerate(pairs)))}
        self._encoder.check(first, self.max_length)
        # Equal pairs are computed once. Sorted texts bring those with a common beginning into the
        # same chunk.
        distinct = sorted(first)
        results: dict[Pair, float] = {}
        with Meter(self.stats, f"scoring with {self.name}", len(pairs), progress) as meter:
            for begin in range(0, len(distinct), _CHUNK):
                chunk = distinct[begin : begin + _CHUNK]
                scored = self._encoder.joined(chunk, [first[p] for p in chunk], self.max_length)
                for read in self.reader.read(
                    [item.tokens[:-1] for item in scored], [item.start - 1 for item in scored]
                ):
                    found = zip(read.pack.members, _answer_means(read, scored), strict=True)
                    results |= {chunk[member]: value for member, value in found}
                    many = {member: copies[chunk[member]] for member in read.pack.members}
                    meter.cut += sum(n for member, n in many.items() if scored[member].cut)
                    meter.done(
                        sum(many.values()),
                        given=sum(n * len(scored[member].tokens) for member, n in many.items()),
                        computed=len(read.pack.tokens),
                    )
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
        with Meter(self.stats, f"decoding with {self.name}", len(prompts), progress) as meter:
            if labels is None:
                results = self._lines(first, copies, max_new_tokens, meter)
            else:
                results = self._labels(first, copies, list(dict.fromkeys(labels)), meter)
        return [results[prompt] for prompt in prompts]

    def _lines(
        self, first: Mapping[str, int], copies: Mapping[str, int], max_new: int, meter: Meter
    ) -> dict[str, str]:
        """Decode freely; `first` maps the distinct prompts to their indices."""
        prompts = list(first)
        tokens = self._encoder.prompts(prompts, list(first.values()), self.max_length - max_new)
        results: dict[str, str] = {}
        for lines in self.decoder.decode(tokens, max_new):
            asked = [prompts[index] for index in lines.members]
            results |= zip(asked, lines.texts, strict=True)
            many = [copies[prompt] for prompt in asked]
            given = sum(n * size for n, size in zip(many, lines.given, strict=True))
            meter.done(sum(many), given=given, computed=lines.read + lines.decoded)
        return results

    def _labels(
        self, first: Mapping[str, int], copies: Mapping[str, int], texts: list[str], meter: Meter
    ) -> dict[str, str]:
        """Decode within the labels; all branchings of all labels are computed in one pass."""
        prompts = sorted(first)
        ends = sorted(self._encoder.newlines() | end_tokens(self.model, self.tokenizer))
        results: dict[str, str] = {}
        for begin in range(0, len(prompts), _LABEL_CHUNK):
            chunk = prompts[begin : begin + _LABEL_CHUNK]
            trees = [
                self._encoder.continuations(prompt, texts, first[prompt], self.max_length)
                for prompt in chunk
            ]
            points = [(n, *point) for n, tree in enumerate(trees) for point in branchings(tree)]
            winners: dict[tuple[int, Prefix], int] = {}
            computed = 0
            for read in self.reader.read(
                [prefix for _, prefix, _ in points], [len(prefix) - 1 for _, prefix, _ in points]
            ):
                computed += len(read.pack.tokens)
                for member, (row,) in zip(read.pack.members, read.rows, strict=True):
                    number, prefix, options = points[member]
                    winners[number, prefix] = _likeliest(read.logits[row], options, ends)
            for number, (prompt, tree) in enumerate(zip(chunk, trees, strict=True)):
                results[prompt] = texts[descend(tree, partial(_look_up, winners, number))]
            sizes = [sum(len(sequence) for sequence in tree) for tree in trees]
            many = [copies[prompt] for prompt in chunk]
            given = sum(n * size for n, size in zip(many, sizes, strict=True))
            meter.done(sum(many), given=given, computed=computed)
        return results


def _answer_means(read: Read, scored: Sequence[Scored]) -> list[float]:
    """Return the mean log-probability of each member's answer tokens, nats per token."""
    targets = np.concatenate(
        [np.asarray(scored[m].tokens[scored[m].start :]) for m in read.pack.members]
    )
    rows = torch.from_numpy(np.concatenate(read.rows)).to(read.logits.device)
    columns = torch.from_numpy(targets).to(read.logits.device)
    normaliser_U = read.logits.logsumexp(-1)
    logprobs = (read.logits[rows, columns] - normaliser_U[rows]).double().cpu().numpy()
    counts = [len(rows) for rows in read.rows]
    cuts = np.cumsum(counts)[:-1]
    return [float(part.mean()) for part in np.split(logprobs, cuts)]


def _likeliest(logits_V: torch.Tensor, options: Sequence[int], ends: Sequence[int]) -> int:
    """Return the option of the highest logit; `END` stands for the likeliest of `ends`."""
    values = [
        float(logits_V[list(ends)].max()) if option == END else float(logits_V[option])
        for option in options
    ]
    return options[values.index(max(values))]


def _look_up(
    winners: Mapping[tuple[int, Prefix], int], number: int, prefix: Prefix, options: list[int]
) -> int:
    winner = winners[number, prefix]
    assert winner in options
    return winner
