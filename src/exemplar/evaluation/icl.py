"""In-context evaluation: the LM answers each query behind its demonstrations (paper, section 4.1).

Classification: greedy decoding that can only produce the task's labels. Multiple choice: the
option with the highest llm_logprob. Generation: greedy, to the first line break. All prompts of a
kind go to the LM in one call, so that it can share prefixes and batch by length.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from exemplar.errors import DataError, PromptError, TaskError
from exemplar.evaluation.digest import examples_markdown, label_agreement, summarise
from exemplar.prompts import fit
from exemplar.records import Example, Outcome
from exemplar.retrieval.ranking import by_task
from exemplar.tasks import metrics

if TYPE_CHECKING:
    from exemplar.data.shares import Shard
    from exemplar.lm.base import LanguageModel
    from exemplar.tasks.spec import TaskSpec

__all__ = [
    "examples_markdown",
    "in_order",
    "label_agreement",
    "predict",
    "share_queries",
    "summarise",
]

_JOIN_TOKENS = 2
"""Tokens kept free beside the answer's own: joined to the prompt it may split into more."""

_BLOCK = 1024
"""Queries that go to the LM in one call, computed together; a share is made of such blocks."""


@dataclass(frozen=True)
class _Item:
    """A query with its fitted prompt and the demonstrations that stayed in, the last one first."""

    query: Example
    prompt: str
    kept: tuple[str, ...]
    num_dropped: int


def predict(
    lm: LanguageModel,
    queries: Sequence[Example],
    demonstrations: Mapping[str, Sequence[Example]],
    specs: Mapping[str, TaskSpec],
    *,
    similarities: Mapping[str, Sequence[float]] | None = None,
    max_new_tokens: int = 64,
    progress: str | None = None,
) -> list[Outcome]:
    """Return what the LM answers to each query and how right it is, in the order of the queries.

    `demonstrations` maps query ids to examples, from the last in the prompt to the first (an empty
    list is zero-shot), and `similarities` to theirs, in the same order; without them the last in
    the prompt is the nearest. Where a prompt and its answer would exceed `lm.max_length` tokens,
    the farthest demonstrations are left out whole. Raises `PromptError` naming the example where
    the query alone does not fit, `DataError` where a query has no entry and `TaskError` where a
    task has no definition.
    """
    _check(queries, demonstrations, specs)
    items = _fit_all(lm, queries, demonstrations, specs, similarities or {}, max_new_tokens)
    by_id = {item.query.example_id: item for item in items}
    predictions: dict[str, str] = {}
    for block in _blocks(queries, specs):
        members = [by_id[query.example_id] for query in block]
        kind, labels = specs[block[0].task].kind, specs[block[0].task].labels
        description = progress and f"{progress}: {_names(members)}"
        if kind == "multiple_choice":
            predictions |= _choose(lm, members, description)
            continue
        texts = lm.generate(
            [item.prompt for item in members],
            max_new_tokens=max_new_tokens,
            labels=labels or None,
            progress=description,
        )
        for item, text in zip(members, texts, strict=True):
            predictions[item.query.example_id] = text.strip()
    return _score(items, predictions, specs)


def share_queries(
    queries: Sequence[Example], specs: Mapping[str, TaskSpec], shard: Shard
) -> list[Example]:
    """Return the queries that fall to a share, in their order.

    A share is made of whole blocks, each one call of the LM: its answers are those of a process
    that does everything, to the last bit.
    """
    own = {
        query.example_id
        for place, block in enumerate(_blocks(queries, specs))
        if shard.has(place)
        for query in block
    }
    return [query for query in queries if query.example_id in own]


def in_order(queries: Sequence[Example], outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Put the outcomes of all shares in the order of the queries.

    Raises `DataError` where they are not those of these queries, each once.
    """
    found = {outcome.example_id: outcome for outcome in outcomes}
    missing = [query.example_id for query in queries if query.example_id not in found]
    if missing or len(found) != len(queries):
        raise DataError(
            f"the shares hold {len(found)} outcomes, expected one for each of {len(queries)} test "
            f"queries; missing: {', '.join(missing[:3]) or 'none'}. Make the shares again, all "
            "with the same version of Exemplar."
        )
    return [found[query.example_id] for query in queries]


def _blocks(queries: Sequence[Example], specs: Mapping[str, TaskSpec]) -> list[list[Example]]:
    """Cut the queries into calls: one kind and one set of labels each, at most `_BLOCK` queries."""
    calls: dict[tuple[str, tuple[str, ...]], list[Example]] = {}
    for query in queries:
        spec = specs[query.task]
        calls.setdefault((spec.kind, spec.labels), []).append(query)
    return [
        members[start : start + _BLOCK]
        for members in calls.values()
        for start in range(0, len(members), _BLOCK)
    ]


def _check(
    queries: Sequence[Example],
    demonstrations: Mapping[str, Sequence[Example]],
    specs: Mapping[str, TaskSpec],
) -> None:
    for query in queries:
        if query.task not in specs:
            raise TaskError(
                f"example {query.example_id!r} is of task {query.task!r}, which has no definition "
                f"here; expected one of {', '.join(sorted(specs))}. Add it to the catalogue."
            )
        if query.example_id not in demonstrations:
            raise DataError(
                f"example {query.example_id!r} has no entry among the demonstrations; zero-shot "
                "is an empty list, not a missing one. Run `search` on this test set again."
            )


def _fit_all(
    lm: LanguageModel,
    queries: Sequence[Example],
    demonstrations: Mapping[str, Sequence[Example]],
    specs: Mapping[str, TaskSpec],
    similarities: Mapping[str, Sequence[float]],
    max_new_tokens: int,
) -> list[_Item]:
    """Build each query's prompt, leaving as many tokens free as its answer may need."""
    answer_tokens = cache(lm.count_tokens)  # labels come back with every example of a task
    items = []
    for query in queries:
        spec, shown = specs[query.task], demonstrations[query.example_id]
        reserve = max_new_tokens
        if spec.kind != "generation":
            answers = spec.labels if spec.kind == "classification" else query.choices
            reserve = max(answer_tokens(answer) for answer in answers) + _JOIN_TOKENS
        try:
            prompt, kept = fit(
                [example.text for example in shown],
                query.query,
                count_tokens=lm.count_tokens,
                budget=lm.max_length - reserve,
                similarities=similarities.get(query.example_id),
            )
        except PromptError as error:
            raise PromptError(f"example {query.example_id!r} of {query.task!r}: {error}") from error
        names = tuple(shown[at].example_id for at in kept)
        items.append(_Item(query, prompt, names, len(shown) - len(kept)))
    return items


def _names(items: Sequence[_Item], most: int = 3) -> str:
    """Return the tasks of one call, for its progress bar."""
    names = list(by_task([item.query for item in items]))
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _choose(lm: LanguageModel, items: Sequence[_Item], progress: str | None) -> dict[str, str]:
    """Return the likeliest choice of each item, the first of equal ones."""
    pairs = [(item.prompt, choice) for item in items for choice in item.query.choices]
    llm_logprobs = iter(
        lm.logprobs(
            [prompt for prompt, _ in pairs], [choice for _, choice in pairs], progress=progress
        )
    )
    chosen = {}
    for item in items:
        scored = [(next(llm_logprobs), choice) for choice in item.query.choices]
        chosen[item.query.example_id] = max(scored, key=lambda pair: pair[0])[1]
    return chosen


def _score(
    items: Sequence[_Item], predictions: Mapping[str, str], specs: Mapping[str, TaskSpec]
) -> list[Outcome]:
    scores: dict[str, float] = {}
    for task, members in by_task([item.query for item in items]).items():
        values = metrics.score_each(
            specs[task].metric,
            [predictions[query.example_id] for query in members],
            [query.answers for query in members],
        )
        scores |= {q.example_id: value for q, value in zip(members, values, strict=True)}
    return [
        Outcome(
            example_id=item.query.example_id,
            task=item.query.task,
            group=item.query.group,
            prediction=predictions[item.query.example_id],
            score=scores[item.query.example_id],
            demonstration_ids=item.kept,
            num_dropped=item.num_dropped,
        )
        for item in items
    ]
