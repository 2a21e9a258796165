"""The data folder: pool, train and test examples with a manifest that seals them.

`manifest.json` holds the sha256 of each Parquet file, the source, its settings and the counts of
every task. Reading compares the sha256s, so that steps never run on a folder whose files come from
two different runs of download_data.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from exemplar.data.io import (
    Record,
    atomic_folder,
    fingerprint,
    read_json,
    read_records,
    write_json,
    write_records,
)
from exemplar.errors import DataError
from exemplar.records import Example
from exemplar.tasks.spec import TaskSpec, load_catalog, select

OWN_TASKS = "tasks.yaml"
"""File with the entries of one's own tasks, in a local source and in a data folder."""

_SPLITS = ("pool", "train", "test")


@dataclass(frozen=True)
class Dataset:
    """All examples of a data folder. `train` is a part of `pool`; `test` stands apart."""

    pool: list[Example]
    train: list[Example]
    test: list[Example]
    manifest: Mapping[str, Any]
    own_tasks: Path | None = None

    @cached_property
    def pool_by_id(self) -> dict[str, Example]:
        """Pool examples, train queries among them, by id."""
        return {example.example_id: example for example in self.pool}

    @cached_property
    def test_by_id(self) -> dict[str, Example]:
        """Test examples by id."""
        return {example.example_id: example for example in self.test}

    @property
    def tasks(self) -> list[str]:
        """Tasks with test examples, in the order of the manifest."""
        present = {example.task for example in self.test}
        return [task for task in self.manifest["tasks"] if task in present]

    @cached_property
    def specs(self) -> dict[str, TaskSpec]:
        """The definitions of the manifest's tasks, by name."""
        return {
            spec.name: spec for spec in select(load_catalog(self.own_tasks), self.manifest["tasks"])
        }

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


def write_dataset(
    folder: Path,
    *,
    pool: Sequence[Example],
    train: Sequence[Example],
    test: Sequence[Example],
    manifest: Mapping[str, Any],
    own_tasks: Path | None = None,
) -> None:
    """Write the three Parquet files and their manifest as one folder, whole or not at all.

    `own_tasks`: a file with the entries of tasks that are not built in; a copy goes along.
    """
    with atomic_folder(folder) as temporary:
        if own_tasks:
            shutil.copyfile(own_tasks, temporary / OWN_TASKS)
        digests = {}
        for name, examples in zip(_SPLITS, (pool, train, test), strict=True):
            path = temporary / f"{name}.parquet"
            write_records(path, Example, examples, made_from={"source": str(manifest["source"])})
            digests[name] = fingerprint(path)
        write_json(temporary / "manifest.json", {**manifest, "sha256": digests})


def read_dataset(folder: Path) -> Dataset:
    """Read a data folder. Raises `DataError` where a file is missing or is not the sealed one."""
    manifest = read_json(folder / "manifest.json")
    if not isinstance(manifest, dict) or not {"sha256", "tasks", "source"} <= set(manifest):
        raise DataError(
            f"{folder / 'manifest.json'}: expected the manifest of download_data with sha256, "
            "tasks and source. Remake it with `dvc repro download_data`."
        )
    splits = {}
    for name in _SPLITS:
        path = folder / f"{name}.parquet"
        found, sealed = fingerprint(path), manifest["sha256"].get(name)
        if found != sealed:
            raise DataError(
                f"{path} is not the file that {folder / 'manifest.json'} seals (sha256 "
                f"{found[:12]}, expected {str(sealed)[:12]}). Remake both with "
                "`dvc repro download_data`."
            )
        splits[name] = read_records(path, Example)
    own_tasks = folder / OWN_TASKS
    return Dataset(
        **splits, manifest=manifest, own_tasks=own_tasks if own_tasks.is_file() else None
    )


def _seal(digests: Mapping[str, str]) -> str:
    text = "\n".join(f"{name} {digests[name]}" for name in _SPLITS)
    return hashlib.sha256(text.encode()).hexdigest()
