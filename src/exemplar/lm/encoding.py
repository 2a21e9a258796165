"""Texts to token sequences, with the answer's span found on the joined tokenisation.

Tokenising prompt and answer apart gives other tokens than tokenising them joined, hence other
probabilities; so the joined text is tokenised and the span is read off the character offsets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from exemplar.errors import PromptError

_EMPTY = (
    "item {index}: the prompt is empty, so nothing predicts the answer's first token. Expected a "
    "prompt that ends with a newline."
)


@dataclass(frozen=True, slots=True)
class Scored:
    """A token sequence whose tokens from `start` on are the answer's; `start` is at least 1."""

    tokens: list[int]
    start: int
    cut: bool


class Encoder:
    """A tokenizer of transformers, with what a prompt begins with.

    `prefix` is the beginning-of-text token where the tokenizer puts one before every text, else
    empty. No other special token is ever added.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        plain = tokenizer("a", add_special_tokens=False)["input_ids"]
        dressed = tokenizer("a")["input_ids"]
        starts_text = dressed[:1] == [tokenizer.bos_token_id] and dressed[:1] != plain[:1]
        self.prefix: list[int] = dressed[:1] if starts_text else []

    def count(self, text: str) -> int:
        """Return the number of tokens of a prompt."""
        return len(self._tokens([text])[0])

    def newlines(self) -> set[int]:
        """Return the tokens that are one newline or the empty line between demonstrations."""
        return {tokens[0] for tokens in self._plain(["\n", "\n\n"]) if len(tokens) == 1}

    def prompts(self, prompts: Sequence[str], indices: Sequence[int], room: int) -> list[list[int]]:
        """Return the token sequences of prompts; `PromptError` on an empty or too long one."""
        found = self._tokens(prompts)
        for index, tokens in zip(indices, found, strict=True):
            if not 0 < len(tokens) <= room:
                raise PromptError(
                    f"item {index}: its prompt has {len(tokens)} tokens; expected 1 to {room} "
                    "(max_length less the new tokens). Use fewer demonstrations, or raise "
                    "max_length.",
                    index=index,
                )
        return found

    def continuations(
        self, prompt: str, labels: Sequence[str], index: int, room: int
    ) -> list[list[int]]:
        """Return the tokens of prompt + label for each label, tokenised joined."""
        found = self.prompts([prompt + label for label in labels], [index] * len(labels), room)
        if not self._tokens([prompt])[0]:
            raise PromptError(_EMPTY.format(index=index), index=index)
        return found

    def joined(
        self, pairs: Sequence[tuple[str, str]], indices: Sequence[int], max_length: int
    ) -> list[Scored]:
        """Tokenise (prompt, answer) pairs; cut prompts from the left to fit `max_length`.

        A token belongs to the answer if it ends behind the prompt. Raises `PromptError`, naming
        the pair by its index, where no token would be left to predict the answer's first from.
        """
        encoded = self._tokenizer(
            [prompt + answer for prompt, answer in pairs],
            add_special_tokens=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        scored = []
        for index, (prompt, _), tokens, offsets in zip(
            indices, pairs, encoded["input_ids"], encoded["offset_mapping"], strict=True
        ):
            # Counted from the end: a text may have hundreds of tokens, its answer few.
            start = len(tokens)
            while start > 0 and offsets[start - 1][1] > len(prompt):
                start -= 1
            scored.append(self._fit(index, tokens, start, max_length))
        return scored

    def check(self, pairs: Mapping[tuple[str, str], int], max_length: int) -> None:
        """Raise on the pairs that `joined` would refuse, before any of them costs time.

        `pairs` maps (prompt, answer) to its index. Only an answer of at least so many bytes can
        have `max_length` tokens, so few are tokenised here.
        """
        suspects = [
            (pair, index)
            for pair, index in pairs.items()
            if not pair[0] or not pair[1].strip() or len(pair[1].encode()) + 2 >= max_length
        ]
        for pair, index in suspects:
            if not pair[1].strip():
                raise PromptError(
                    f"item {index}: the answer is empty, so it has no probability. Expected at "
                    "least one visible character.",
                    index=index,
                )
            self.joined([pair], [index], max_length)

    def _fit(self, index: int, tokens: list[int], start: int, max_length: int) -> Scored:
        """Cut a sequence from the left, never into its answer."""
        assert start < len(tokens)  # the answer is not empty, and a token ends where the text ends
        before = len(self.prefix)
        cut = max(0, before + len(tokens) - max_length)
        if before + start == 0:
            raise PromptError(_EMPTY.format(index=index), index=index)
        if before + start - cut < 1 or cut > start:
            raise PromptError(
                f"item {index}: its answer has {len(tokens) - start} tokens, which leaves no room "
                f"for a prompt within max_length = {max_length} tokens. A cut answer would get the "
                "probability of another text; shorten the answer or raise max_length.",
                index=index,
            )
        return Scored(self.prefix + tokens[cut:], before + start - cut, cut > 0)

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.prefix + tokens for tokens in self._plain(texts)]

    def _plain(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)
        tokens: list[list[int]] = encoded["input_ids"]
        return tokens
