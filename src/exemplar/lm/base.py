"""What the steps ask of a language model, whichever engine runs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass
class LmStats:
    """Work done since the model was loaded.

    `tokens_given` counts every sequence in full; `tokens_computed` is what went through the model
    after duplicates and shared prefixes were dropped (and, in generation, after padding came in).
    """

    sequences: int = 0
    tokens_given: int = 0
    tokens_computed: int = 0
    seconds: float = 0.0

    @property
    def share_saved(self) -> float:
        """The share of the tokens given that never had to be computed, 0 to 1."""
        return 1 - self.tokens_computed / self.tokens_given if self.tokens_given else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Tokens given per second: the speed that the caller sees."""
        return self.tokens_given / self.seconds if self.seconds else 0.0

    def figures(self) -> dict[str, float]:
        """Return what is worth a line on the terminal and in the table of costs."""
        return {
            "sequences": self.sequences,
            "tokens": self.tokens_given,
            "tokens_computed": self.tokens_computed,
            "tokens_per_second": round(self.tokens_per_second, 1),
        }

    def add(self, other: LmStats) -> None:
        """Add the work of one call."""
        self.sequences += other.sequences
        self.tokens_given += other.tokens_given
        self.tokens_computed += other.tokens_computed
        self.seconds += other.seconds


def blank_line(text: str) -> bool:
    """Whether a token's text ends the line before anything visible was said."""
    return "\n" in text and not text.split("\n", 1)[0].strip()


class LanguageModel(Protocol):
    """A frozen causal language model."""

    name: str
    dtype: str
    max_length: int
    stats: LmStats

    def count_tokens(self, text: str) -> int:
        """Return how many tokens `text` takes as a prompt."""

    def logprobs(
        self, prompts: Sequence[str], answers: Sequence[str], *, progress: str | None = None
    ) -> list[float]:
        """Return the mean log-probability of each answer's tokens after its prompt.

        Nats per token, higher is better. Tokens are those of the joined text; one belongs to the
        answer if it ends behind the prompt. Where prompt and answer exceed `max_length` tokens the
        prompt loses its left end.

        Raises:
            PromptError: an answer or a prompt is empty, or an answer alone fills `max_length`.
            ModelError: the model returned NaN or infinity.
        """

    def generate(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = 64,
        labels: Sequence[str] | None = None,
        *,
        progress: str | None = None,
    ) -> list[str]:
        """Return the greedy continuation of each prompt, up to its first newline.

        A line must say something: a first token that would end it empty gives way to the likeliest
        that does not (`blank_line`). The end of the text is respected, and gives an empty line.

        With `labels` only these texts can come out: the decoding is greedy over their tokens. A
        label that another one continues (`Yes`, `Yes, but`) wins where ending the line (a newline
        or the end-of-text token) is likelier than each continuation.

        Raises:
            PromptError: a prompt is empty, or leaves no room for the answer within `max_length`.
            ModelError: the model returned NaN or infinity.
        """
