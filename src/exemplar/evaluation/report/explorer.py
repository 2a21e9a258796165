"""The data behind the report's explorer: test examples and what each method made of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exemplar.errors import DataError
from exemplar.seeding import rng

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exemplar.evaluation.report.page import ReportData
    from exemplar.evaluation.report.view import Names
    from exemplar.records import Example, Outcome

_LONGEST = 400  # characters of a demonstration's query or answer that are shown


def payload(names: Names, data: ReportData) -> dict[str, Any]:
    """Return plain JSON values; pool examples that are shown are stored once, by number.

    At most `data.explorer_examples` are shown, as many of each task, drawn by seed, with
    demonstrations cut at 400 characters, so that the page of a large test set still opens at once.
    Raises `DataError` for an unknown example id.
    """
    shown = _sample(data)
    methods = [method for method in data.methods if method in data.outcomes]
    by_method = {m: {o.example_id: o for o in data.outcomes[m]} for m in methods}
    similarities = {
        (method, row.query_id): dict(zip(row.candidate_ids, row.similarities, strict=True))
        for method, rows in data.demonstrations.items()
        for row in rows
    }
    pool = {example.example_id: example for example in data.pool}
    numbers: dict[str, int] = {}
    examples = []
    for example in shown:
        runs = {}
        for method in methods:
            outcome = by_method[method].get(example.example_id)
            if outcome is None:
                raise DataError(
                    f"{method} has no outcome for test example {example.example_id!r}: it was "
                    "evaluated on another test set. Evaluate it again."
                )
            known = similarities.get((method, example.example_id), {})
            runs[method] = _run(outcome, known, pool, numbers)
        examples.append(_example(example, runs))
    return {
        "methods": [{"key": m, "label": names.label(m), "kind": names.kind(m)} for m in methods],
        "best": names.best_baseline,
        "chosen": names.last_round or names.best_baseline or methods[-1],
        "tasks": sorted({example.task for example in shown}),
        "total": len(data.test),
        "longest": _LONGEST,
        "pool": [_shown(pool[name]) for name in numbers],
        "examples": examples,
    }


def _sample(data: ReportData) -> list[Example]:
    by_task: dict[str, list[Example]] = {}
    for example in sorted(data.test, key=lambda example: example.example_id):
        by_task.setdefault(example.task, []).append(example)
    each = max(1, data.explorer_examples // max(1, len(by_task)))
    shown: list[Example] = []
    for task, members in sorted(by_task.items()):
        count = min(len(members), each)
        drawn: Sequence[Example] = rng(data.seed, "explorer", task).sample(members, count)
        shown.extend(sorted(drawn, key=lambda example: example.example_id))
    return shown


def _run(
    outcome: Outcome,
    similarities: dict[str, float],
    pool: dict[str, Example],
    numbers: dict[str, int],
) -> dict[str, Any]:
    chosen = []
    for name in outcome.demonstration_ids:
        if name not in pool:
            raise DataError(
                f"Demonstration {name!r} of test example {outcome.example_id!r} is not in the "
                "pool. The outcomes were made from another pool; evaluate again."
            )
        similarity = similarities.get(name)
        rounded = None if similarity is None else round(similarity, 4)
        chosen.append([numbers.setdefault(name, len(numbers)), rounded])
    return {
        "answer": outcome.prediction,
        "score": round(outcome.score, 2),
        "demonstrations": chosen,
        "dropped": outcome.num_dropped,
    }


def _shown(example: Example) -> list[str | bool]:
    """Return query and answer, and whether either was cut."""
    parts = (example.query, example.answer)
    return [*(_cut(part) for part in parts), any(len(part) > _LONGEST for part in parts)]


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST].rstrip()} …"


def _example(example: Example, runs: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": example.example_id,
        "task": example.task,
        "query": example.query,
        "answers": list(example.answers),
        "choices": list(example.choices),
        "gold": example.gold,
        "runs": runs,
    }
