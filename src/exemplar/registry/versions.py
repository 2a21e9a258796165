"""Retrievers in the MLflow registry: their versions and what they hold.

A version is complete before it exists: its files are uploaded first, and its tags come with it.
Which version is in use, and how that changes, is in `aliases.py`; what each has to tell, its gate
report among it, in `story.py`.
"""

from __future__ import annotations

import datetime
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from exemplar.data.io import fingerprint, read_records
from exemplar.records import Outcome
from exemplar.registry.aliases import CHAMPION, aliases_of, challenge, resolve
from exemplar.registry.bundle import OUTCOMES, SearchSettings, save_pyfunc, write_bundle
from exemplar.registry.story import GATE, introduction
from exemplar.tracking.runs import FINGERPRINT, digest_of
from exemplar.tracking.store import Store, explained

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

_ROUND, _AVERAGE = "exemplar.round", "eval/average"

_WHAT = (
    "Picks the examples that a language model answers best after. Every round of training is a "
    "version. `champion` answers queries, `previous` is where a rollback leads, `challenger` is "
    "the newest that has not become champion. Each version tells what it was made from and why "
    "the gate let it through or refused it."
)


@dataclass(frozen=True)
class VersionRecord:
    """A registered version. `fingerprints`: of the files that it was judged on, "test", "pool"."""

    version: str
    round: int
    aliases: tuple[str, ...]
    average: float | None
    gate: str
    run_id: str
    created: str
    fingerprints: Mapping[str, str]

    def row(self) -> dict[str, str]:
        """Return what a table shows of it."""
        return {
            "version": self.version,
            "aliases": ", ".join(self.aliases),
            "round": str(self.round),
            "average": "" if self.average is None else f"{self.average:.1f}",
            "gate": self.gate,
            "created": self.created,
        }


@dataclass(frozen=True)
class Champion:
    """The champion with its frozen outcomes, one a test example, to compare a challenger with."""

    record: VersionRecord
    outcomes: list[Outcome]


def register(
    store: Store,
    name: str,
    *,
    run_id: str,
    round: int,
    retriever: Path,
    pool: Path,
    outcomes: Path,
    metrics: Path,
    entry_script: Path,
    fingerprints: Mapping[str, str],
    search: SearchSettings,
    tags: Mapping[str, str] | None = None,
    progress: str | None = None,
) -> str:
    """Register a round's retriever as a new version, make it challenger, return the version.

    The version holds the encoder, the embedded pool, `outcomes` and `metrics`, and answers queries
    through `entry_script` (mlflow/served_model.py). `pool` is a Parquet file of examples, or, much
    faster, the folder that `PoolIndex.save` wrote with this retriever; it chooses by `search`. The
    same registered again gives the version that exists; it becomes challenger again unless it is
    champion or previous. Raises `DataError` where a file is missing and `RegistryError` where
    MLflow refuses.
    """
    files = [fingerprint(path) for path in (retriever, pool, outcomes, metrics)]
    digest = digest_of([round, *files, search.to_dict()])
    with explained(f"registering {name!r} in {store.place}"):
        for version in _versions(store, name):
            if version.tags.get(FINGERPRINT) == digest:
                challenge(store, name, str(version.version))
                return str(version.version)
        with tempfile.TemporaryDirectory(prefix="exemplar-") as temporary:
            bundle = Path(temporary) / "bundle"
            write_bundle(
                bundle,
                retriever=retriever,
                pool=pool,
                evaluation={"outcomes.parquet": outcomes, "metrics.json": metrics},
                search=search,
                progress=progress,
            )
            model_id = _upload(store, run_id, round, bundle, entry_script, Path(temporary))
        _ensure_model(store, name)
        own = {FINGERPRINT: digest, _ROUND: str(round)}
        own |= {f"exemplar.fingerprint.{key}": value for key, value in fingerprints.items()}
        run = store.client.get_run(run_id)
        average = run.data.metrics.get(_AVERAGE)
        if average is not None:
            own[_AVERAGE] = f"{average:.4f}"
        created = store.client.create_model_version(
            name,
            source=store.client.get_logged_model(model_id).artifact_location,
            run_id=run_id,
            model_id=model_id,
            tags={**(tags or {}), **own},
            description=introduction(run, round),
        )
        # What MLflow's pages use to lead from the logged model to its versions.
        link = json.dumps([{"name": name, "version": str(created.version)}])
        store.client.set_logged_model_tags(model_id, {"mlflow.modelVersions": link})
        challenge(store, name, str(created.version))
    return str(created.version)


def champion(store: Store, name: str) -> Champion | None:
    """Return the champion with its outcomes, or None while there is none."""
    with explained(f"reading the champion of {name!r} from {store.place}"):
        version = aliases_of(store, name).get(CHAMPION)
    if version is None:
        return None
    record = next(item for item in list_versions(store, name) if item.version == version)
    with tempfile.TemporaryDirectory(prefix="exemplar-") as temporary:
        path = _download(store, name, version, OUTCOMES, Path(temporary))
        return Champion(record, read_records(path, Outcome))


def list_versions(store: Store, name: str) -> list[VersionRecord]:
    """Return every version of the model, the newest first; none where it is not registered."""
    with explained(f"listing the versions of {name!r} in {store.place}"):
        aliases = aliases_of(store, name)
        return [_record(version, aliases) for version in _versions(store, name)]


def record(store: Store, name: str, version: str) -> VersionRecord:
    """Return one version. Raises `RegistryError` that says which there are instead."""
    resolve(store, f"models:/{name}/{version}")
    return next(item for item in list_versions(store, name) if item.version == version)


def fetch(store: Store, reference: str, into: Path) -> Path:
    """Download what models:/<name>@<alias> or models:/<name>/<version> names; return its folder.

    Raises `RegistryError` that says which names, versions or aliases there are instead.
    """
    name, version = resolve(store, reference)
    return _download(store, name, version, "", into)


def _upload(
    store: Store, run_id: str, round: int, bundle: Path, entry_script: Path, temporary: Path
) -> str:
    """Save the model as MLflow's format wants it, upload it, link it to its run; return its id."""
    from mlflow.entities import LoggedModelOutput, Metric

    run = store.client.get_run(run_id)
    model = store.client.create_logged_model(
        store.experiment_id,
        name=f"round-{round}",
        source_run_id=run_id,
        params=run.data.params,
        model_type="retriever",
    )
    status = "FAILED"
    try:
        folder = temporary / "model"
        save_pyfunc(folder, bundle, entry_script, model_id=model.model_id, run_id=run_id)
        store.client.log_model_artifacts(model.model_id, str(folder))
        status = "READY"
    finally:
        store.client.finalize_logged_model(model.model_id, status)
    store.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=round)])
    figures = [
        store.client.get_metric_history(run_id, key)[-1]
        for key in run.data.metrics
        if key.startswith("eval/")
    ]
    linked = [
        Metric(item.key, item.value, item.timestamp, item.step, model_id=model.model_id)
        for item in figures
    ]
    store.client.log_batch(run_id, metrics=linked[:1000])
    return str(model.model_id)


def _ensure_model(store: Store, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        store.client.create_registered_model(name, description=_WHAT)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _versions(store: Store, name: str) -> list[ModelVersion]:
    """Return the model's versions, the newest first; none where there is no such model."""
    found = store.client.search_model_versions(f"name = '{name}'", max_results=10_000)
    return sorted(found, key=lambda version: -int(version.version))


def _record(version: ModelVersion, aliases: Mapping[str, str]) -> VersionRecord:
    prefix = "exemplar.fingerprint."
    created = datetime.datetime.fromtimestamp(version.creation_timestamp / 1000, datetime.UTC)
    average = version.tags.get(_AVERAGE)
    return VersionRecord(
        version=str(version.version),
        round=int(version.tags.get(_ROUND, 0)),
        aliases=tuple(sorted(a for a, at in aliases.items() if at == str(version.version))),
        average=None if average is None else float(average),
        gate=version.tags.get(GATE, ""),
        run_id=version.run_id or "",
        created=created.isoformat(timespec="seconds"),
        fingerprints={
            key.removeprefix(prefix): value
            for key, value in version.tags.items()
            if key.startswith(prefix)
        },
    )


def _download(store: Store, name: str, version: str, path: str, into: Path) -> Path:
    from mlflow.artifacts import download_artifacts

    with explained(f"downloading {path or 'the model'} of version {version} of {name!r}"):
        # A models:/ address would be looked up in MLflow's process-wide store, not in this one.
        source = store.client.get_model_version_download_uri(name, version)
        found = download_artifacts(
            artifact_uri=f"{source}/{path}".rstrip("/"),
            dst_path=str(into),
            tracking_uri=store.uri,
        )
    return Path(found)
