"""Runs in MLflow: one for each round and each baseline, under the same metric names.

The store is an SQLite file beside the project unless MLFLOW_TRACKING_URI says otherwise; models and
their aliases are in `registry.py`. Only `MlflowClient` is used, never MLflow's process-wide state,
so a process may hold several stores. MLflow is imported inside functions: it takes a second.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from exemplar.data.io import fingerprint
from exemplar.errors import DataError, RegistryError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput

FINGERPRINT = "exemplar.fingerprint"
"""Tag of a run or model version: the digest of what it holds. Logging that again finds it."""

_SQLITE = "sqlite:///"
_NOT_IN_NAMES = re.compile(r"[^\w\-. :/]")  # MLflow refuses anything else in a name
_METRICS_AT_ONCE = 1000  # MLflow's own limits for one request
_PARAMS_AT_ONCE = 100
_DIGEST_LENGTH = 36


@dataclass(frozen=True)
class Store:
    """An open tracking store with its registry, and one experiment in it ("" for none)."""

    uri: str
    experiment: str
    experiment_id: str
    client: MlflowClient


class Dataset(NamedTuple):
    """A file that a run used: the name shown, where it lies, its digest, and what it served for."""

    name: str
    path: Path
    digest: str
    context: str


def store_uri(root: Path, environment: Mapping[str, str] | None = None) -> str:
    """Return MLFLOW_TRACKING_URI, or the SQLite file `mlflow.db` in the folder `root`."""
    values = os.environ if environment is None else environment
    given = values.get("MLFLOW_TRACKING_URI", "").strip()
    return given or f"{_SQLITE}{root.resolve() / 'mlflow.db'}"


def open_store(
    where: Path | str,
    experiment: str | None = None,
    *,
    artifacts: Path | None = None,
    create: bool = True,
) -> Store:
    """Open a tracking store; make its database and experiment where they are missing.

    `where`: the project's root (then see `store_uri`) or the address of a store.
    `artifacts`: folder for the files of a new experiment. Default: `mlartifacts` beside an SQLite
    file; a server decides for itself. Without an experiment there are models to read but no runs
    to log. With `create=False` a missing database or experiment is an error. Raises
    `RegistryError`, also where the store cannot be reached.
    """
    _hush()
    from mlflow import MlflowClient

    uri = store_uri(where) if isinstance(where, Path) else where
    with explained(f"opening the MLflow store {uri}"):
        if uri.startswith(_SQLITE):
            database = Path(uri.removeprefix(_SQLITE)).absolute()
            uri = f"{_SQLITE}{database}"
            artifacts = artifacts or database.parent / "mlartifacts"
            if not database.exists():
                _missing(f"There is no MLflow database at {database}", create)
                _create_database(database)
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        if experiment is None:
            return Store(uri, "", "", client)
        found = client.get_experiment_by_name(experiment)
        if found is not None:
            if found.lifecycle_stage != "active":
                raise RegistryError(
                    f"MLflow experiment {experiment!r} at {uri} is deleted. Restore it with "
                    f"`mlflow experiments restore -x {found.experiment_id}`, or choose another "
                    "name in params.yaml (promotion.experiment)."
                )
            return Store(uri, experiment, found.experiment_id, client)
        _missing(f"MLflow at {uri} has no experiment {experiment!r}", create)
        location = artifacts.absolute().as_uri() if artifacts else None
        identity = _create_experiment(client, experiment, location)
    return Store(uri, experiment, identity, client)


def log_run(
    store: Store,
    *,
    name: str,
    kind: str,
    round: int | None,
    params: Mapping[str, object],
    metrics: Mapping[str, float],
    curves: Mapping[str, Sequence[tuple[int, float]]] | None = None,
    datasets: Iterable[Dataset] = (),
    tags: Mapping[str, str] | None = None,
    artifacts: Sequence[Path] = (),
) -> str:
    """Log one finished run and return its id. Logging the same again returns the first one's id.

    `metrics` are logged at step 0, for which MLflow draws bars, rounds beside baselines; `curves`
    as (update, value) points. The same means: equal name, kind, round, params, metrics, curves,
    dataset digests and artifact contents; tags do not count, for they tell when and from where. A
    run that fails half-way is marked FAILED and does not count as logged. Raises `DataError` on a
    figure that is not finite.
    """
    from mlflow.entities import Metric, Param

    curves, inputs = curves or {}, [Dataset(*item) for item in datasets]
    texts = {clean_name(key): _as_text(value) for key, value in params.items()}
    points = _points(name, metrics, curves)
    digest = digest_of(
        [name, kind, round, texts, points],
        [[item.name, item.digest, item.context] for item in inputs],
        [[path.name, fingerprint(path)] for path in artifacts],
    )
    if (existing := _find_run(store, digest)) is not None:
        return existing
    own = {FINGERPRINT: digest, "exemplar.kind": kind}
    if round is not None:
        own["exemplar.round"] = str(round)
    now = int(time.time() * 1000)
    figures = [Metric(key, value, now, step) for key, step, value in points]
    settings = [Param(key, value) for key, value in texts.items()]
    with explained(f"logging run {name!r} to {store.uri}"):
        run = store.client.create_run(
            store.experiment_id, run_name=name, tags={**(tags or {}), **own}
        )
        identity: str = run.info.run_id
        status = "FAILED"
        try:
            for start in range(0, len(settings), _PARAMS_AT_ONCE):
                store.client.log_batch(identity, params=settings[start : start + _PARAMS_AT_ONCE])
            for start in range(0, len(figures), _METRICS_AT_ONCE):
                store.client.log_batch(identity, metrics=figures[start : start + _METRICS_AT_ONCE])
            if inputs:
                store.client.log_inputs(identity, [_as_input(item) for item in inputs])
            for path in artifacts:
                store.client.log_artifact(identity, str(path))
            status = "FINISHED"
        finally:
            store.client.set_terminated(identity, status)
    return identity


def add_artifacts(store: Store, run_id: str, files: Iterable[Path]) -> None:
    """Keep more files with a run that is logged; one of the same name is replaced."""
    with explained(f"adding files to run {run_id} in {store.uri}"):
        for path in files:
            store.client.log_artifact(run_id, str(path))


def clean_name(name: str) -> str:
    """Return `name` with every character that MLflow refuses in names replaced by "_"."""
    return _NOT_IN_NAMES.sub("_", name)


def digest_of(*parts: object) -> str:
    """Return the sha256 of plain JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@contextmanager
def explained(doing: str) -> Iterator[None]:
    """Turn MLflow's and the database's errors into one `RegistryError` that says what was tried."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        first = str(error).strip().split("\n")[0].rstrip(".")
        advice = "Check the address (MLFLOW_TRACKING_URI) and that the server is up."
        if "out-of-date database schema" in str(error):
            advice = "Back the database up, then run `mlflow db upgrade` on that address."
        raise RegistryError(f"{doing} failed: {first}. {advice}") from error


def _hush() -> None:
    """Switch off MLflow's telemetry, progress bars and migration messages, unless asked for."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for way in ("DOWNLOAD", "UPLOAD"):  # else clients are sent past the server to its store
        os.environ.setdefault(f"MLFLOW_ENABLE_PROXY_MULTIPART_{way}", "false")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # its default waits for minutes
    import mlflow  # noqa: F401  it sets its loggers up on import

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _missing(what: str, create: bool) -> None:
    if not create:
        raise RegistryError(
            f"{what}. Run the promotion step first (`dvc repro`), from the project's root, or set "
            "MLFLOW_TRACKING_URI to where the models are registered."
        )


def _create_database(database: Path) -> None:
    """Make the database under another name, then link it into place.

    Two processes that let MLflow create one database both run its migrations and one of them dies
    of a duplicate column; one that is killed meanwhile leaves tables that nothing can open.
    """
    from mlflow.db import upgrade

    database.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{database.name}.", dir=database.parent) as folder:
        new = Path(folder) / database.name
        upgrade.callback(f"{_SQLITE}{new}")  # what `mlflow db upgrade` runs
        try:
            database.hardlink_to(new)
        except FileExistsError:
            return  # another process was faster; its database is as good
        except OSError:  # a file system without hard links
            new.rename(database)


def _create_experiment(client: MlflowClient, name: str, location: str | None) -> str:
    from mlflow.exceptions import MlflowException

    try:
        identity: str = client.create_experiment(name, artifact_location=location)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        identity = client.get_experiment_by_name(name).experiment_id  # made by another process
    return identity


def _find_run(store: Store, digest: str) -> str | None:
    """Return the finished run with this fingerprint; close those that were killed half-way."""
    with explained(f"searching the runs of {store.uri}"):
        runs = store.client.search_runs([store.experiment_id], f"tags.`{FINGERPRINT}` = '{digest}'")
        for run in runs:
            if run.info.status == "FINISHED":
                identity: str = run.info.run_id
                return identity
            if run.info.status == "RUNNING":
                store.client.set_terminated(run.info.run_id, "KILLED")
    return None


def _points(
    name: str,
    metrics: Mapping[str, float],
    curves: Mapping[str, Sequence[tuple[int, float]]],
) -> list[tuple[str, int, float]]:
    points = [(clean_name(key), 0, float(value)) for key, value in metrics.items()]
    for key, curve in curves.items():
        points += [(clean_name(key), int(update), float(value)) for update, value in curve]
    for key, at, value in points:
        if not math.isfinite(value):
            raise DataError(
                f"run {name!r}: metric {key!r} is {value} at step {at}, expected a finite number. "
                "Remake the step that wrote it."
            )
    return points


def _as_input(dataset: Dataset) -> DatasetInput:
    from mlflow.entities import Dataset as Entity
    from mlflow.entities import DatasetInput, InputTag

    source, digest = json.dumps({"uri": str(dataset.path)}), dataset.digest[:_DIGEST_LENGTH]
    entity = Entity(name=dataset.name, digest=digest, source_type="local", source=source)
    return DatasetInput(entity, tags=[InputTag("mlflow.data.context", dataset.context)])


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
