"""Runs in MLflow: one for each round and each baseline, under the same metric names.

Only `MlflowClient` is used, never MLflow's process-wide state, so a process may hold several
stores. MLflow is imported inside functions: it takes a second.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from exemplar.data.io import fingerprint
from exemplar.errors import DataError
from exemplar.tracking.store import Store, explained

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

FINGERPRINT = "exemplar.fingerprint"
"""Tag of a run or model version: the digest of what it holds. Logging that again finds it."""

_NOT_IN_NAMES = re.compile(r"[^\w\-. :/]")  # MLflow refuses anything else in a name
_METRICS_AT_ONCE = 1000  # MLflow's own limits for one request
_PARAMS_AT_ONCE = 100
_DIGEST_LENGTH = 36


class Dataset(NamedTuple):
    """A file that a run used: the name shown, where it lies, its digest, and what it served for."""

    name: str
    path: Path
    digest: str
    context: str


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
    with explained(f"logging run {name!r} to {store.place}"):
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
    with explained(f"adding files to run {run_id} in {store.place}"):
        for path in files:
            store.client.log_artifact(run_id, str(path))


def clean_name(name: str) -> str:
    """Return `name` with every character that MLflow refuses in names replaced by "_"."""
    return _NOT_IN_NAMES.sub("_", name)


def digest_of(*parts: object) -> str:
    """Return the sha256 of plain JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _find_run(store: Store, digest: str) -> str | None:
    """Return the finished run with this fingerprint; close those that were killed half-way."""
    with explained(f"searching the runs of {store.place}"):
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
