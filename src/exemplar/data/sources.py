"""Where examples come from: the embedded sample set, a folder of files a task, or the hub.

A local source is one folder a task, each with `train` and `test` as .jsonl, .jsonl.gz, .csv or
.parquet; the columns are those of the task's catalogue entry, as on the hub. Out come the pool,
the training queries (a part of the pool) and the test queries, with counts that say where every
row went. Nothing is written here.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tqdm import tqdm

from exemplar.data.dataset import OWN_TASKS
from exemplar.data.hub import Hub
from exemplar.data.tables import SUFFIXES, Row, find_table, read_rows
from exemplar.errors import DataError, TaskError
from exemplar.records import Example
from exemplar.retrieval.ranking import by_task, normalise
from exemplar.seeding import derive_seed
from exemplar.tasks import sample
from exemplar.tasks.rendering import EmptyFieldError, render
from exemplar.tasks.spec import TaskSpec

Source = Literal["sample", "local", "hub"]
OpenRows = Callable[[TaskSpec, str], tuple[str, Iterator[Row]]]
"""From a task and "train" or "test" to what the rows are called in errors, and the rows."""


class Splits(NamedTuple):
    """`train` is a part of `pool`, with the same ids; no test query stands in the pool.

    `counts`: task -> how many rows were read, left out and kept, and the balance of the answers
    (see `load`).
    """

    pool: list[Example]
    train: list[Example]
    test: list[Example]
    counts: dict[str, dict[str, Any]]


class _Numbered(NamedTuple):
    row: int  # its place in the file, from 0
    example: Example


@dataclass
class _Material:
    """What a source holds for one task before anything is drawn; `pool` may be a stream.

    `rows`: the folder of the pool's rows, which names their draw, so that tasks which share rows
    get the same ones; None: the first rows are taken, not drawn (the sample set is balanced so).
    `train_ids`: which of the pool may be training queries; None: all.
    """

    spec: TaskSpec
    rows: str | None
    pool: Iterable[_Numbered]
    test: list[_Numbered]
    train_ids: frozenset[str] | None
    counts: dict[str, Any]


def available(source: Source, path: Path | None, catalog: Mapping[str, TaskSpec]) -> list[str]:
    """Return the names of the catalogue's tasks that the source can fill.

    Raises `DataError` where a local folder is missing or holds no task of the catalogue.
    """
    if source == "sample":
        return list(sample.specs())
    if source == "hub":
        return [name for name, spec in catalog.items() if spec.from_rows and spec.hub]
    root = _local_root(path)
    names = [
        name
        for name, spec in catalog.items()
        if spec.from_rows
        and find_table(root / name, "test")
        and find_table(root / (spec.train_from or name), "train")
    ]
    if not names:
        raise DataError(
            f"{root} holds no task: expected folders named like tasks of the catalogue (sst2, "
            f"snli, ...), each with train and test as {', '.join(SUFFIXES)}."
        )
    return names


def load(
    source: Source,
    *,
    path: Path | None,
    specs: Sequence[TaskSpec],
    seed: int,
    max_pool: int | None = None,
    max_train: int | None = None,
    max_test: int | None = None,
    progress: str | None = None,
) -> Splits:
    """Return the tasks' pool, training queries and test queries, at most so many a task.

    Draws depend on the seed, the task and the row alone; what is drawn keeps the file's order. In
    the pool, examples of a task with equal query and answer (normalised) are merged, and those
    whose query is a test query of any task are left out. Held-out tasks have no training query.
    `counts` of a task: rows_read (train, test), empty (reason -> rows), duplicates_merged,
    dropped_in_test, pool, train, test, answers (split -> answer -> examples; classification only).

    Raises `DataError` where a folder or file is missing or damaged, `TaskError` where a row does
    not fit its task or a task ends up empty.
    """
    if source == "sample":
        materials = _sample(specs, seed)
    elif source == "local":
        materials = _from_rows(specs, partial(_local_rows, _local_root(path)))
    else:
        hub = Hub(path)
        materials = _from_rows(specs, hub.rows)
        for material in materials:
            material.counts["commit"] = hub.commit(material.spec)
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
    numbered: Iterable[_Numbered], limit: int | None, seed: int, split: str, rows: str | None
) -> list[_Numbered]:
    """Return `limit` of a stream in its order: those of the smallest seeds, in a single pass."""
    if limit is None or rows is None:
        return list(islice(numbered, limit))
    drawn = heapq.nsmallest(
        limit, numbered, key=lambda one: derive_seed(seed, "sources", split, rows, one.row)
    )
    return sorted(drawn, key=lambda one: one.row)


def _fresh(
    pool: Iterable[_Numbered], test_queries: set[str], counts: dict[str, Any]
) -> Iterator[_Numbered]:
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


def _refuse_empty(material: _Material) -> None:
    for split in ("pool", "test"):
        if not material.counts[split]:
            raise TaskError(
                f"task {material.spec.name!r}: its {split} has no example left (counts: "
                f"{material.counts}). Give it more rows, or take it off the list of tasks."
            )


def _sample(specs: Sequence[TaskSpec], seed: int) -> list[_Material]:
    known = sample.specs()
    for spec in specs:
        if spec.name not in known:
            raise TaskError(
                f"task {spec.name!r} is not in the sample set. It has: {', '.join(known)}. "
                "For other tasks use the source 'local'."
            )
    generated = {name: by_task(examples) for name, examples in sample.generate(seed).items()}
    return [
        _Material(
            spec=spec,
            rows=None,
            pool=_numbered(generated["pool"][spec.name]),
            test=_numbered(generated["test"][spec.name]),
            train_ids=frozenset(e.example_id for e in generated["train"].get(spec.name, [])),
            counts={
                "rows_read": {
                    "train": len(generated["pool"][spec.name]),
                    "test": len(generated["test"][spec.name]),
                },
                "empty": {},
            },
        )
        for spec in specs
    ]


def _numbered(examples: Iterable[Example]) -> list[_Numbered]:
    return [_Numbered(row, example) for row, example in enumerate(examples)]


def _local_root(path: Path | None) -> Path:
    if path is None:
        raise DataError("the source 'local' needs a path: a folder that holds one folder a task.")
    if not path.is_dir():
        raise DataError(f"there is no folder {path}. It must hold one folder a task.")
    return path


def own_tasks(source: Source, path: Path | None) -> Path | None:
    """Return the file of one's own task entries that a local source brings along, if it does."""
    file = path / OWN_TASKS if source == "local" and path else None
    return file if file and file.is_file() else None


def _from_rows(specs: Sequence[TaskSpec], open_rows: OpenRows) -> list[_Material]:
    materials = []
    for spec in specs:
        folder = spec.train_from or spec.name
        counts: dict[str, Any] = {"rows_read": {"train": 0, "test": 0}, "empty": {}}
        train_spec = replace(spec.train_spec or spec, name=spec.name)
        materials.append(
            _Material(
                spec=spec,
                rows=folder,
                pool=_examples(train_spec, "train", open_rows(spec, "train"), counts),
                test=list(_examples(spec, "test", open_rows(spec, "test"), counts)),
                train_ids=None if _teacher(folder, specs) == spec.name else frozenset(),
                counts=counts,
            )
        )
    return materials


def _teacher(folder: str, specs: Sequence[TaskSpec]) -> str | None:
    """Return the task that trains on a folder's rows: they teach once, however many share them."""
    sharing = [s for s in specs if (s.train_from or s.name) == folder and not s.held_out]
    own_first = sorted(sharing, key=lambda spec: spec.name != folder)
    return own_first[0].name if own_first else None


def _local_rows(root: Path, spec: TaskSpec, split: str) -> tuple[str, Iterator[Row]]:
    folder = root / (spec.train_from or spec.name if split == "train" else spec.name)
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder} with the rows of this task.")
    path = find_table(folder, split)
    if path is None:
        raise DataError(
            f"{folder} holds no {split} file: expected {split}{f' or {split}'.join(SUFFIXES)}."
        )
    return str(path), read_rows(path)


def _examples(
    spec: TaskSpec, split: str, opened: tuple[str, Iterator[Row]], counts: dict[str, Any]
) -> Iterator[_Numbered]:
    """Yield a split's rows as examples, counting those that are read and those that are empty."""
    empty: dict[str, int] = counts["empty"]
    where, rows = opened
    for number, row in enumerate(rows):
        counts["rows_read"][split] += 1
        try:
            example = render(spec, row, f"{spec.name}/{split}/{number}")
        except EmptyFieldError as error:
            reason = f"{split}: {error.reason}"
            empty[reason] = empty.get(reason, 0) + 1
        except TaskError as error:
            raise TaskError(f"{where}: {error}") from error
        else:
            yield _Numbered(number, example)
