"""What a retriever is asked, and what it answers: a query in, demonstrations and the prompt out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from exemplar import prompts
from exemplar.records import Example


@dataclass(frozen=True, slots=True)
class Filters:
    """Which pool examples may be demonstrations; what is left empty does not restrict.

    `tasks`, `groups` and `answers` (the one that is shown) name those that may be shown,
    `exclude_ids` and `exclude_groups` those that may not. `min_similarity`: the least cosine
    similarity with the query.
    """

    tasks: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    exclude_ids: tuple[str, ...] = ()
    exclude_groups: tuple[str, ...] = ()
    min_similarity: float | None = None


@dataclass(frozen=True, slots=True)
class Query:
    """A text to find demonstrations for: `k` of them, of one task (None: of all).

    `k` None: as many as the retriever was evaluated with.
    """

    text: str
    task: str | None = None
    k: int | None = None
    filters: Filters = Filters()


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A pool example chosen for a query, with its cosine similarity to it."""

    example: Example
    similarity: float


@dataclass(frozen=True, slots=True)
class Selection:
    """A query with its demonstrations, the last in the prompt first.

    That is the nearest first, unless the retriever was evaluated in another order.
    """

    query: str
    demonstrations: tuple[Demonstration, ...]

    def __iter__(self) -> Iterator[Demonstration]:
        return iter(self.demonstrations)

    def __len__(self) -> int:
        return len(self.demonstrations)

    def prompt(
        self, *, count_tokens: Callable[[str], int] | None = None, budget: int | None = None
    ) -> str:
        """Return the prompt, the first of the demonstrations last.

        With `count_tokens` and `budget`, the last of them are left out until it fits; `PromptError`
        where the query alone does not.
        """
        texts = [demonstration.example.text for demonstration in self.demonstrations]
        if count_tokens is None or budget is None:
            return prompts.assemble(texts, self.query)
        return prompts.fit(texts, self.query, count_tokens=count_tokens, budget=budget)[0]

    def messages(self) -> list[dict[str, str]]:
        """Return the prompt as chat messages (`prompts.chat`)."""
        pairs = [(item.example.query, item.example.answer) for item in self.demonstrations]
        return prompts.chat(pairs, self.query)
