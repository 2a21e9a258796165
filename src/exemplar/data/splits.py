"""What is kept of the rows: no test query in the pool, no example twice, so many a task by seed."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

from tqdm import tqdm

from exemplar.data.dataset import SPLITS, Keep
from exemplar.data.digests import DigestSet
from exemplar.errors import DataError, TaskError
from exemplar.records import Example
from exemplar.retrieval.ranking import normalise
from exemplar.seeding import derive_seed
from exemplar.tasks.spec import TaskSpec


class Splits(NamedTuple):
    """`train` is a part of `pool`, with the same ids; by default no test query stands in the pool.

    `counts` of a task: rows_read (train, test), empty and cut (reason -> rows), duplicates_merged,
    dropped_in_test, kept_in_test, pool, train, test, answers (split -> answer -> examples;
    classification only).
    """

    pool: list[Example]
    train: list[Example]
    test: list[Example]
    counts: dict[str, dict[str, Any]]

    def keep(self, split: str, example: Example) -> None:
        """Take an example of the split "pool", "train" or "test"."""
        getattr(self, split).append(example)


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
    keep: Keep,
    *,
    seed: int,
    max_pool: int | None = None,
    max_train: int | None = None,
    max_test: int | None = None,
    drop_test_queries: bool = True,
    allowed_leaks: Collection[str] = (),
    progress: str | None = None,
) -> dict[str, dict[str, Any]]:
    """Give `keep` the pool, training queries and test queries of all tasks, at most so many a task.

    Draws depend on the seed, the task and the row alone; what is drawn keeps the file's order. In
    the pool, examples of a task with equal query and answer (normalised) are merged, and those
    whose query is a test query of any task are left out; without `drop_test_queries` they stay,
    but only in the tasks that `allowed_leaks` names. Only drawn examples are held in memory, and a
    pool without `max_pool` is not drawn. Returns the counts of each task (see `Splits`). Raises
    `TaskError` where a task ends up empty, `DataError` where test queries would stay in the pool of
    a task that was not named.
    """
    test_queries = DigestSet()
    for material in materials:
        for one in material.test:
            test_queries.add(normalise(one.example.query))
    for material in materials:
        spec, rows, ids = material.spec, material.rows, material.train_ids
        labelled = spec.kind == "classification"
        counted = {split: _Counted(keep, split, labelled=labelled) for split in SPLITS}
        described = progress and f"{progress}: {spec.name}"
        bar = tqdm(material.pool, desc=described, disable=progress is None, unit=" rows")
        fresh = _fresh(bar, test_queries, material.counts, drop=drop_test_queries)
        pool = draw(fresh, max_pool, seed, "pool", rows)
        through = counted["pool"].passing(pool)
        teachers = (one for one in through if ids is None or one.example.example_id in ids)
        for one in draw(teachers, max_train, seed, "train", rows):
            counted["train"](one)
        for _ in through:
            pass  # what lies behind the last training query
        if spec.name not in allowed_leaks:
            _refuse_leak(material)
        for one in draw(material.test, max_test, seed, "test", rows and spec.name):
            counted["test"](one)
        material.counts |= {split: counter.count for split, counter in counted.items()}
        if labelled:
            material.counts["answers"] = {
                split: dict(counter.answers.most_common()) for split, counter in counted.items()
            }
        _refuse_empty(material)
    return {material.spec.name: material.counts for material in materials}


class _Counted:
    """Hands the examples of a split on, and counts them."""

    def __init__(self, keep: Keep, split: str, *, labelled: bool) -> None:
        self._keep, self._split, self._labelled = keep, split, labelled
        self.count = 0
        self.answers: Counter[str] = Counter()

    def __call__(self, one: Numbered) -> None:
        self._keep(self._split, one.example)
        self.count += 1
        if self._labelled:
            self.answers[one.example.answer] += 1

    def passing(self, numbered: Iterable[Numbered]) -> Iterator[Numbered]:
        for one in numbered:
            self(one)
            yield one


def draw(
    numbered: Iterable[Numbered], limit: int | None, seed: int, split: str, rows: str | None
) -> Iterable[Numbered]:
    """Return `limit` of a stream in its order: those of the smallest seeds, in a single pass.

    None: all of them. `rows` names what is drawn from; None: the first ones are taken.
    """
    if limit is None or rows is None:
        return islice(numbered, limit)
    drawn = heapq.nsmallest(
        limit, numbered, key=lambda one: derive_seed(seed, "sources", split, rows, one.row)
    )
    return sorted(drawn, key=lambda one: one.row)


def _fresh(
    pool: Iterable[Numbered], test_queries: DigestSet, counts: dict[str, Any], *, drop: bool
) -> Iterator[Numbered]:
    """Yield the examples that are neither met before nor, with `drop`, asked in the test."""
    counts |= {"duplicates_merged": 0, "dropped_in_test": 0, "kept_in_test": 0}
    seen = DigestSet()
    for one in pool:
        query = normalise(one.example.query)
        asked = query in test_queries
        counts["kept_in_test"] += asked and not drop
        if asked and drop:
            counts["dropped_in_test"] += 1
        elif seen.add(f"{query}\n{normalise(one.example.answer)}"):
            yield one
        else:
            counts["duplicates_merged"] += 1


def _refuse_leak(material: Material) -> None:
    """Raise `DataError` where rows of the pool ask what the test asks."""
    if leaked := material.counts["kept_in_test"]:
        name = material.spec.name
        raise DataError(
            f"task {name!r}: {leaked:,} of its training rows ask a test query. As demonstrations "
            "they would give the answer away, and the figures would be a lie. Set "
            "download_data.drop_test_queries to true to leave them out of the pool, or name the "
            "task in download_data.allowed_leaks to keep them."
        )


def _refuse_empty(material: Material) -> None:
    for split in ("pool", "test"):
        if not material.counts[split]:
            raise TaskError(
                f"task {material.spec.name!r}: its {split} has no example left (counts: "
                f"{material.counts}). Give it more rows, or take it off the list of tasks."
            )
