"""The MLflow run of a whole pipeline run: opened first, closed with its state by the exit handler.

It is found again by the id of the pipeline's run, so that the two pods that open and close it need
no other tie. The runs of rounds and baselines stand beside it (`promotion.py`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exemplar.errors import RegistryError
from exemplar.kubeflow.arguments import profile_of
from exemplar.tracking.store import Store, explained, open_store

PIPELINE_RUN = "exemplar.pipeline_run"
"""Tag of the MLflow run: the id of the pipeline's run."""

_STATES = {"SUCCEEDED": "FINISHED", "SKIPPED": "FINISHED", "CANCELLED": "KILLED"}


def require_address(environment: Mapping[str, str] | None = None) -> None:
    """Raise `RegistryError` where MLFLOW_TRACKING_URI is not set: a pod's own disk is no store."""
    values = os.environ if environment is None else environment
    if not values.get("MLFLOW_TRACKING_URI", "").strip():
        raise RegistryError(
            "MLFLOW_TRACKING_URI is not set. Runs and models would be kept in this container and "
            "lost with it: give the address of the MLflow server in its environment."
        )


def open_run(*, settings: Mapping[str, Any], name: str, pipeline_run: str) -> str:
    """Open the run, or find the one that an earlier try opened, and return its id."""
    store = _store(settings)
    if (found := _find(store, pipeline_run)) is not None:
        return found
    tags = {"exemplar.kind": "pipeline", PIPELINE_RUN: pipeline_run}
    with explained(f"opening the run of {name!r} in {store.uri}"):
        run = store.client.create_run(store.experiment_id, run_name=name, tags=tags)
        return str(run.info.run_id)


def close_run(*, settings: Mapping[str, Any], pipeline_run: str, state: str, error: str) -> None:
    """Close the run with the state in which the pipeline ended, and the error, if there was one.

    A pipeline that failed before the run was opened has none to close.
    """
    store = _store(settings)
    run_id = _find(store, pipeline_run)
    if run_id is None:
        return
    with explained(f"closing run {run_id} in {store.uri}"):
        store.client.set_tag(run_id, "exemplar.pipeline_state", state)
        if error:
            store.client.set_tag(run_id, "exemplar.pipeline_error", error)
        store.client.set_terminated(run_id, _STATES.get(state, "FAILED"))


def _store(settings: Mapping[str, Any]) -> Store:
    require_address()
    return open_store(Path.cwd(), profile_of(settings).promotion.experiment)


def _find(store: Store, pipeline_run: str) -> str | None:
    with explained(f"searching the runs of {store.uri}"):
        found = store.client.search_runs(
            [store.experiment_id], f"tags.`{PIPELINE_RUN}` = '{pipeline_run}'"
        )
    return str(found[0].info.run_id) if found else None
