"""Where examples come from: the sample set, a folder of files a task, the hub, an S3 store.

A local source is one folder a task, each with `train` and `test` as .jsonl, .jsonl.gz, .csv or
.parquet; the columns are those of the task's catalogue entry, as on the hub. Out come the pool,
the training queries (a part of the pool) and the test queries, with counts that say where every
row went (`splits.py`). Nothing is written here but what is fetched from S3.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from exemplar.data import s3
from exemplar.data.dataset import OWN_TASKS, SPLITS, Keep
from exemplar.data.hub import Hub
from exemplar.data.splits import Material, Numbered, Splits, divide
from exemplar.data.tables import SUFFIXES, Row, find_table, read_rows
from exemplar.errors import DataError, TaskError
from exemplar.records import Example
from exemplar.retrieval.ranking import by_task
from exemplar.tasks import sample
from exemplar.tasks.rendering import EmptyFieldError, cut_fields, render
from exemplar.tasks.spec import TaskSpec

Source = Literal["sample", "local", "hub"]
OpenRows = Callable[[TaskSpec, str], tuple[str, Iterator[Row]]]
"""From a task and "train" or "test" to what the rows are called in errors, and the rows."""


def at_hand(
    source: Source | Literal["s3"], path: str | None, cache: Path
) -> tuple[Source, Path | None]:
    """Return a source that can be read here: what lies on an S3 store is brought to `cache`."""
    if source == "s3":
        return "local", s3.fetch(path or "", cache / "s3", progress=f"fetching {path}")
    return source, Path(path) if path else None


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


def load(source: Source, **settings: Any) -> Splits:
    """Return what `stream` gives, in memory."""
    splits = Splits([], [], [], {})
    splits.counts.update(stream(source, splits.keep, **settings))
    return splits


def stream(
    source: Source,
    keep: Keep,
    *,
    path: Path | None,
    specs: Sequence[TaskSpec],
    seed: int,
    max_pool: int | None = None,
    max_train: int | None = None,
    max_test: int | None = None,
    drop_test_queries: bool = True,
    allowed_leaks: Collection[str] = (),
    progress: str | None = None,
) -> dict[str, dict[str, Any]]:
    """Give `keep` the tasks' pool, training queries and test queries, at most so many a task.

    How they are drawn, and what is left out, is told at `splits.divide`; the counts of each task
    are returned. Held-out tasks have no training query. Raises `DataError` where a folder or file
    is missing or damaged, or a leak not allowed, `TaskError` where a row does not fit its task or
    a task ends up empty.
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
    return divide(
        materials,
        keep,
        seed=seed,
        max_pool=max_pool,
        max_train=max_train,
        max_test=max_test,
        drop_test_queries=drop_test_queries,
        allowed_leaks=allowed_leaks,
        progress=progress,
    )


def totals(counts: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Return how many examples each split has, over all tasks."""
    return {split: sum(of_task[split] for of_task in counts.values()) for split in SPLITS}


def _sample(specs: Sequence[TaskSpec], seed: int) -> list[Material]:
    known = sample.specs()
    for spec in specs:
        if spec.name not in known:
            raise TaskError(
                f"task {spec.name!r} is not in the sample set. It has: {', '.join(known)}. "
                "For other tasks use the source 'local'."
            )
    generated = {name: by_task(examples) for name, examples in sample.generate(seed).items()}
    return [
        Material(
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
                "cut": {},
            },
        )
        for spec in specs
    ]


def _numbered(examples: Iterable[Example]) -> list[Numbered]:
    return [Numbered(row, example) for row, example in enumerate(examples)]


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


def _from_rows(specs: Sequence[TaskSpec], open_rows: OpenRows) -> list[Material]:
    materials = []
    for spec in specs:
        folder = spec.train_from or spec.name
        counts: dict[str, Any] = {"rows_read": {"train": 0, "test": 0}, "empty": {}, "cut": {}}
        train_spec = replace(spec.train_spec or spec, name=spec.name)
        materials.append(
            Material(
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
) -> Iterator[Numbered]:
    """Yield a split's rows as examples, counting what is read, left out and cut."""
    empty: dict[str, int] = counts["empty"]
    cut: dict[str, int] = counts["cut"]
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
            for field in cut_fields(spec, row):
                reason = f"{split}: {field!r} over {spec.max_words} words"
                cut[reason] = cut.get(reason, 0) + 1
            yield Numbered(number, example)
