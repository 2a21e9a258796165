"""What is kept of the rows: no test query in the pool, no example twice, so many a task by seed."""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

from tqdm import tqdm

from exemplar.errors import TaskError
from exemplar.records import Example
from exemplar.retrieval.ranking import normalise
from exemplar.seeding import derive_seed
from exemplar.tasks.spec import TaskSpec


class Splits(NamedTuple):
    """`train` is a part of `pool`, with the same ids; no test query stands in the pool.

    `counts` of a task: rows_read (train, test), empty (reason -> rows), duplicates_merged,
    dropped_in_test, pool, train, test, answers (split -> answer -> examples; classification only).
    """

    pool: list[Example]
    train: list[Example]
    test: list[Example]
    counts: dict[str, dict[str, Any]]


class Numbered(NamedTuple):
    """An example and its row."""

    row: int  # its place in the file, from 0
    example: Example


@dataclass
class Material:
    """What a source holds for one task before anything is drawn; `pool` may be a stream.

    `rows`: the folder of the pool's rows, which names their draw, so that tasks which share rows
    get the same ones; None: the first rows are taken, not drawn (the sample set is balanced so).
    `train_ids`: which of the pool may be training queries; None: all.
    """

    spec: TaskSpec
    rows: str | None
    pool: Iterable[Numbered]
    test: list[Numbered]
    train_ids: frozenset[str] | None
    counts: dict[str, Any]


def divide(
    materials: Sequence[Material],
    *,
    seed: int,
    max_pool: int | None = None,
    max_train: int | None = None,
    max_test: int | None = None,
    progress: str | None = None,
) -> Splits:
    """Return pool, training queries and test queries of all tasks, at most so many a task.

    Draws depend on the seed, the task and the row alone; what is drawn keeps the file's order. In
    the pool, examples of a task with equal query and answer (normalised) are merged, and those
    whose query is a test query of any task are left out. Raises `TaskError` where a task ends up
    empty.
    """
    test_queries = {normalise(one.example.query) for m in materials for one in m.test}
    splits = Splits([], [], [], {})
    for material in tqdm(materials, desc=progress, disable=progress is None, unit="task"):
        spec, rows, ids = material.spec, material.rows, material.train_ids
        fresh = _fresh(material.pool, test_queries, material.counts)
        pool = _draw(fresh, max_pool, seed, "pool", rows)
        teachers = [one for one in pool if ids is None or one.example.example_id in ids]
        train = _draw(teachers, max_train, seed, "train", rows)
        test = _draw(material.test, max_test, seed, "test", rows and spec.name)
        kept = {"pool": pool, "train": train, "test": test}
        material.counts |= {name: len(numbered) for name, numbered in kept.items()}
        if spec.kind == "classification":
            material.counts["answers"] = {
                name: dict(Counter(one.example.answer for one in numbered).most_common())
                for name, numbered in kept.items()
            }
        _refuse_empty(material)
        splits.counts[spec.name] = material.counts
        for split, numbered in zip(splits[:3], kept.values(), strict=True):
            split.extend(one.example for one in numbered)
    return splits


def _draw(
    numbered: Iterable[Numbered], limit: int | None, seed: int, split: str, rows: str | None
) -> list[Numbered]:
    """Return `limit` of a stream in its order: those of the smallest seeds, in a single pass."""
    if limit is None or rows is None:
        return list(islice(numbered, limit))
    drawn = heapq.nsmallest(
        limit, numbered, key=lambda one: derive_seed(seed, "sources", split, rows, one.row)
    )
    return sorted(drawn, key=lambda one: one.row)


def _fresh(
    pool: Iterable[Numbered], test_queries: set[str], counts: dict[str, Any]
) -> Iterator[Numbered]:
    """Yield the examples that are neither met before nor asked in the test."""
    counts |= {"duplicates_merged": 0, "dropped_in_test": 0}
    seen: set[bytes] = set()
    for one in pool:
        query = normalise(one.example.query)
        text = f"{query}\n{normalise(one.example.answer)}"
        digest = hashlib.sha256(text.encode()).digest()[:16]  # millions of rows: keep no texts
        if query in test_queries:
            counts["dropped_in_test"] += 1
        elif digest in seen:
            counts["duplicates_merged"] += 1
        else:
            seen.add(digest)
            yield one


def _refuse_empty(material: Material) -> None:
    for split in ("pool", "test"):
        if not material.counts[split]:
            raise TaskError(
                f"task {material.spec.name!r}: its {split} has no example left (counts: "
                f"{material.counts}). Give it more rows, or take it off the list of tasks."
            )
