"""Texts to token sequences, with the answer's span found on the joined tokenisation.

Tokenising prompt and answer apart gives other tokens than tokenising them joined, hence other
probabilities; so the joined text is tokenised and the span is read off the character offsets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from exemplar.errors import PromptError


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
        self.tokenizer = tokenizer
        plain = tokenizer("a", add_special_tokens=False)["input_ids"]
        dressed = tokenizer("a")["input_ids"]
        starts_text = dressed[:1] == [tokenizer.bos_token_id] and dressed[:1] != plain[:1]
        self.prefix: list[int] = dressed[:1] if starts_text else []

    def count(self, text: str) -> int:
        """Return the number of tokens of a prompt."""
        return len(self.prompts([text])[0])

    def prompts(self, prompts: Sequence[str]) -> list[list[int]]:
        """Return the token sequences of prompts, whole."""
        encoded = self.tokenizer(list(prompts), add_special_tokens=False, verbose=False)
        return [self.prefix + tokens for tokens in encoded["input_ids"]]

    def joined(
        self, pairs: Sequence[tuple[str, str]], indices: Sequence[int], max_length: int
    ) -> list[Scored]:
        """Tokenise (prompt, answer) pairs; cut prompts from the left to fit `max_length`.

        A token belongs to the answer if it ends behind the prompt. Raises `PromptError`, naming
        the pair by its index, where no token would be left to predict the answer's first from.
        """
        encoded = self.tokenizer(
            [prompt + answer for prompt, answer in pairs],
            add_special_tokens=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        scored = []
        for index, (prompt, _), tokens, offsets in zip(
            indices, pairs, encoded["input_ids"], encoded["offset_mapping"], strict=True
        ):
            boundary = len(prompt)
            # Counted from the end: a text may have hundreds of tokens, its answer few.
            start = len(tokens)
            while start > 0 and offsets[start - 1][1] > boundary:
                start -= 1
            scored.append(self._fit(index, tokens, start, max_length))
        return scored

    def _fit(self, index: int, tokens: list[int], start: int, max_length: int) -> Scored:
        answer = len(tokens) - start
        room = max_length - len(self.prefix)
        cut = max(0, len(tokens) - room)
        if answer == 0:
            raise PromptError(
                f"item {index}: the answer has no token of its own after its prompt, so it has no "
                "probability. Expected an answer of at least one visible character."
            )
        if len(self.prefix) + start - cut < 1:
            raise PromptError(
                f"item {index}: its answer of {answer} tokens leaves no room for a prompt within "
                f"max_length = {max_length} tokens. A cut answer would get the probability of "
                "another text; shorten the answer or raise max_length."
                if start
                else f"item {index}: the prompt is empty, so nothing predicts the answer's first "
                "token. Expected a prompt that ends with a newline."
            )
        return Scored(self.prefix + tokens[cut:], len(self.prefix) + start - cut, cut > 0)
