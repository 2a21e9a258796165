"""The data folder: pool, train and test examples with a manifest that seals them.

`manifest.json` holds the sha256 of each Parquet file, the source, its settings and the counts of
every task. Reading compares the sha256s, so that steps never run on a folder whose files come from
two different runs of download_data. The pool, which may hold millions, stays in its file.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from exemplar.data.io import (
    Record,
    Writer,
    atomic_folder,
    fingerprint,
    open_writer,
    read_json,
    read_records,
    write_json,
)
from exemplar.data.stored import StoredExamples
from exemplar.errors import DataError
from exemplar.records import Candidates, Example, LlmScores, Rewards
from exemplar.tasks.spec import TaskSpec, load_catalog, select

OWN_TASKS = "tasks.yaml"
"""File with the entries of one's own tasks, in a local source and in a data folder."""

SPLITS = ("pool", "train", "test")

Keep = Callable[[str, Example], None]
"""Takes an example of the split "pool", "train" or "test"."""

Also = Callable[[Path, str], None]
"""Writes what else belongs into a data folder, given it and the fingerprint of its three files."""

Judged = TypeVar("Judged", LlmScores, Rewards)


@dataclass(frozen=True)
class Dataset:
    """All examples of a data folder. `train` is a part of `pool`; `test` stands apart."""

    pool: StoredExamples
    train: list[Example]
    test: list[Example]
    manifest: Mapping[str, Any]
    own_tasks: Path | None = None

    @cached_property
    def pool_by_id(self) -> dict[str, Example]:
        """The whole pool in memory, by id; where ids are known beforehand, see `pool_examples`."""
        return {example.example_id: example for example in self.pool}

    def pool_examples(
        self, *records: Iterable[Candidates | LlmScores | Rewards]
    ) -> dict[str, Example]:
        """Return the queries and candidates that records name, as far as the pool has them."""
        named = chain.from_iterable(records)
        return self.pool.select({i for item in named for i in (item.query_id, *item.candidate_ids)})

    @cached_property
    def test_by_id(self) -> dict[str, Example]:
        """Test examples by id."""
        return {example.example_id: example for example in self.test}

    @property
    def tasks(self) -> list[str]:
        """Tasks with test examples, in the order of the manifest."""
        present = {example.task for example in self.test}
        return [task for task in self.manifest["tasks"] if task in present]

    def searching(self, queries: Sequence[Example]) -> list[Example]:
        """Return queries under the task whose pool examples they search.

        That is their own, or, where it has none, the one that it trains from.
        """
        filled = self.pool.by_task()

        def at_home(query: Example) -> Example:
            other = "" if query.task in filled else self.specs[query.task].train_from
            return replace(query, task=other) if other in filled else query

        return [at_home(query) for query in queries]

    def of_training(self, records: Iterable[Judged]) -> list[Judged]:
        """Return the records of training queries: a release scores those of held-out tasks too."""
        known = {example.example_id for example in self.train}
        return [record for record in records if record.query_id in known]

    @cached_property
    def specs(self) -> dict[str, TaskSpec]:
        """The definitions of the manifest's tasks, by name."""
        catalog = load_catalog(self.own_tasks, alone=self.manifest["source"] == "released")
        return {spec.name: spec for spec in select(catalog, self.manifest["tasks"])}

    @property
    def classification_tasks(self) -> frozenset[str]:
        """The tasks whose answers are labels."""
        return frozenset(name for name, spec in self.specs.items() if spec.kind == "classification")

    def read(self, path: Path, kind: type[Record], **inputs: Path) -> list[Record]:
        """Read records that were made from this data and from `inputs`, as they are now.

        Raises `DataError` where they were not.
        """
        return read_records(path, kind, made_from=self.made_from(**inputs))

    def made_from(self, **inputs: Path) -> dict[str, str]:
        """Return the fingerprints of this data and of other inputs, to seal a file with."""
        others = {name: fingerprint(path) for name, path in inputs.items()}
        return {"data": self.fingerprint, **others}

    @property
    def fingerprint(self) -> str:
        """One digest of the three files: what everything downstream is made from."""
        return _seal(self.manifest["sha256"])


class DatasetWriter:
    """Takes the examples of a data folder as they come, and its manifest at the end."""

    def __init__(self, writers: Mapping[str, Writer[Example]]) -> None:
        self._writers = writers
        self.manifest: Mapping[str, Any] = {}
        self.also: Also | None = None

    def keep(self, split: str, example: Example) -> None:
        """Take an example of the split "pool", "train" or "test"."""
        self._writers[split].add(example)


@contextmanager
def open_dataset(
    folder: Path, *, source: str, own_tasks: Path | None = None
) -> Iterator[DatasetWriter]:
    """Yield a writer; the three Parquet files and the manifest appear as one folder, or not at all.

    `own_tasks`: a file with the entries of tasks that are not built in; a copy goes along. The
    writer's `manifest` has to be set before the block ends; its `also` may complete it.
    """
    with atomic_folder(folder) as temporary:
        if own_tasks:
            shutil.copyfile(own_tasks, temporary / OWN_TASKS)
        paths = {name: temporary / f"{name}.parquet" for name in SPLITS}
        with ExitStack() as stack:
            opened = {
                name: stack.enter_context(open_writer(path, Example, made_from={"source": source}))
                for name, path in paths.items()
            }
            writer = DatasetWriter(opened)
            yield writer
        digests = {name: fingerprint(path) for name, path in paths.items()}
        if writer.also:
            writer.also(temporary, _seal(digests))
        write_json(temporary / "manifest.json", {**writer.manifest, "sha256": digests})


def write_dataset(
    folder: Path,
    *,
    pool: Iterable[Example],
    train: Iterable[Example],
    test: Iterable[Example],
    manifest: Mapping[str, Any],
    own_tasks: Path | None = None,
    also: Also | None = None,
) -> None:
    """Write examples as a data folder; see `open_dataset`."""
    with open_dataset(folder, source=str(manifest["source"]), own_tasks=own_tasks) as writer:
        writer.manifest, writer.also = manifest, also
        for name, examples in zip(SPLITS, (pool, train, test), strict=True):
            for example in examples:
                writer.keep(name, example)


def read_dataset(folder: Path) -> Dataset:
    """Read a data folder. Raises `DataError` where a file is missing or is not the sealed one."""
    manifest = read_json(folder / "manifest.json")
    if not isinstance(manifest, dict) or not {"sha256", "tasks", "source"} <= set(manifest):
        raise DataError(
            f"{folder / 'manifest.json'}: expected the manifest of download_data with sha256, "
            "tasks and source. Remake it with `dvc repro download_data`."
        )
    for name in SPLITS:
        path = folder / f"{name}.parquet"
        found, sealed = fingerprint(path), manifest["sha256"].get(name)
        if found != sealed:
            raise DataError(
                f"{path} is not the file that {folder / 'manifest.json'} seals (sha256 "
                f"{found[:12]}, expected {str(sealed)[:12]}). Remake both with "
                "`dvc repro download_data`."
            )
    own_tasks = folder / OWN_TASKS
    return Dataset(
        pool=StoredExamples(folder / "pool.parquet"),
        train=read_records(folder / "train.parquet", Example),
        test=read_records(folder / "test.parquet", Example),
        manifest=manifest,
        own_tasks=own_tasks if own_tasks.is_file() else None,
    )


def _seal(digests: Mapping[str, str]) -> str:
    text = "\n".join(f"{name} {digests[name]}" for name in SPLITS)
    return hashlib.sha256(text.encode()).hexdigest()
