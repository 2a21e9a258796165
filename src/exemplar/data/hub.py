"""Rows of the data sets that the catalogue names on the Hugging Face hub, or of a mirror of them.

A mirror is a folder with a folder a data set, `<mirror>/<owner>/<name>`, as `git clone` or
`hf download --repo-type dataset` makes it. Which commit the rows came from is recorded; the hub
library's own settings (`HF_HUB_OFFLINE`, `HF_HOME`, `HF_TOKEN`) hold as everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exemplar.errors import DataError
from exemplar.tasks.spec import TaskSpec

if TYPE_CHECKING:
    from datasets import Dataset

PARQUET_BRANCH = "refs/convert/parquet"
"""Where the hub keeps Parquet copies of data sets whose main branch holds a loading script."""


class Hub:
    """The hub, or with `mirror` a folder in its place."""

    def __init__(self, mirror: Path | None = None) -> None:
        if mirror is not None and not mirror.is_dir():
            raise DataError(
                f"there is no folder {mirror}. As the path of the source 'hub' it must be a mirror "
                "with a folder <owner>/<name> a data set; leave the path away to use the hub."
            )
        self._mirror = mirror
        self._commits: dict[tuple[str, str], str | None] = {}

    def rows(self, spec: TaskSpec, split: str) -> tuple[str, Iterator[dict[str, Any]]]:
        """Return what the rows of "train" or "test" are called, and the rows.

        A task that trains on another's rows gets the other's. Raises `DataError` where the
        catalogue names no such split, or it cannot be had.
        """
        spec = spec.train_spec or spec if split == "train" else spec
        name = spec.hub.get(split)
        if not name:
            raise DataError(
                f"task {spec.name!r}: its catalogue entry names no {split} split under `hub`."
            )
        told = "/".join(filter(None, [spec.hub["id"], spec.hub.get("config"), name]))
        return told, iter(self._load(spec, name, told))

    def commit(self, spec: TaskSpec) -> str | None:
        """Return the commit of the data set, None for a mirror and where the hub is not asked."""
        if self._mirror is not None:
            return None
        key = spec.hub["id"], spec.hub.get("revision", "main")
        if key not in self._commits:
            self._commits[key] = _commit(*key)
        return self._commits[key]

    def _load(self, spec: TaskSpec, name: str, told: str) -> Dataset:
        datasets = _library()
        hub, commit = spec.hub, self.commit(spec)
        clone = str(self._mirror / hub["id"]) if self._mirror else None
        if hub.get("revision") == PARQUET_BRANCH:
            root = clone or f"hf://datasets/{hub['id']}@{commit or PARQUET_BRANCH}"
            files = f"{root}/{hub['config']}/{name}/*.parquet"
            where: dict[str, Any] = {"path": "parquet", "data_files": {name: files}}
        elif clone:
            where = {"path": clone, "name": hub.get("config")}
        else:
            where = {"path": hub["id"], "name": hub.get("config"), "revision": commit}
        try:
            return datasets.load_dataset(**where, split=name)
        except _failures() as error:
            raise DataError(
                f"task {spec.name!r}: {told} cannot be had: {type(error).__name__}: {error}\n"
                "Check the network and, for a gated data set, your access (`hf auth login`); "
                "without network, give a mirror as the path, or fill the cache beforehand and set "
                "HF_HUB_OFFLINE=1."
            ) from error


def _library() -> Any:
    try:
        import datasets
    except ModuleNotFoundError as error:
        if error.name != "datasets":
            raise
        raise DataError(
            "the source 'hub' needs the datasets library, which is not installed here. "
            "Install it with `pip install 'exemplar[hub]'`."
        ) from error
    return datasets


def _failures() -> tuple[type[Exception], ...]:
    """Return what the libraries raise: errors of their own, of the network, of wrong names."""
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    network = HfHubHTTPError.__bases__  # the HTTP library's own root, whichever library that is
    return (*network, OSError, ValueError, RuntimeError, DatasetsError)


def _commit(name: str, revision: str) -> str | None:
    """Ask the hub for a data set's commit; offline, the cache serves whatever it holds."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        return HfApi().dataset_info(name, revision=revision).sha
    except OfflineModeIsEnabled:
        return None
    except _failures() as error:
        raise DataError(
            f"the hub does not say which commit of {name} ({revision}) is current: {error}\n"
            "Check the network and your access; without network set HF_HUB_OFFLINE=1 to use what "
            "is in the cache, or give a mirror as the path."
        ) from error
