"""Sending compiled pipelines to a KFP endpoint, and watching their runs, by kfp.Client."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from exemplar.errors import PipelineError
from exemplar.kubeflow.endpoint import Endpoint, UnreachableError, asked, connect
from exemplar.kubeflow.package import Package

SUCCEEDED = "SUCCEEDED"
_ENDED = {SUCCEEDED, "FAILED", "CANCELED", "CANCELLED", "SKIPPED"}
_LOST_SECONDS = 300
"""How long a server may be unreachable while a run is watched: a restart takes less."""


@dataclass(frozen=True)
class Submitted:
    """A run as the server knows it."""

    run_id: str
    url: str
    version: str


@dataclass(frozen=True)
class Change:
    """What watching found: a task, or "" for the run itself, came into a state."""

    task: str
    state: str
    error: str = ""


def submit(
    endpoint: Endpoint,
    package: Package,
    arguments: Mapping[str, Any],
    *,
    experiment: str,
    run_name: str,
    service_account: str = "",
    cached: bool = True,
) -> Submitted:
    """Upload a compiled pipeline, unless this version of it is there, and start a run of it.

    Raises `PipelineError` where the endpoint is down, slow, refuses the credentials, or refuses the
    pipeline.
    """
    client = connect(endpoint)
    with contextlib.redirect_stdout(io.StringIO()):  # kfp.Client prints addresses, three of them
        target = asked(
            endpoint,
            f"making the experiment {experiment!r}",
            lambda: client.create_experiment(experiment, namespace=endpoint.namespace or None),
        )
        pipeline_id = _pipeline(endpoint, client, package)
        version, version_id = _version(endpoint, client, package, pipeline_id)
        run = asked(
            endpoint,
            f"starting the run {run_name!r}",
            lambda: client.run_pipeline(
                experiment_id=target.experiment_id,
                job_name=run_name,
                params=dict(arguments),
                pipeline_id=pipeline_id,
                version_id=version_id,
                enable_caching=cached,
                service_account=service_account or None,
            ),
        )
    return Submitted(run.run_id, f"{endpoint.host}/#/runs/details/{run.run_id}", version)


def watch(
    endpoint: Endpoint, run_id: str, *, every_s: float = 5.0, lost_s: float = _LOST_SECONDS
) -> Iterator[Change]:
    """Yield every change of state of a run and its tasks, the run's own last state at the end.

    A server that is away for less than `lost_s` seconds is asked again. Raises `PipelineError`
    where there is no such run.
    """
    client = connect(endpoint)
    known: dict[str, str] = {}
    last_answer = time.monotonic()
    while True:
        try:
            run = asked(endpoint, f"reading run {run_id}", lambda: client.get_run(run_id))
        except UnreachableError as error:
            if time.monotonic() - last_answer > lost_s:
                raise PipelineError(
                    f"{error} The run itself goes on; watch it again with "
                    f"`exemplar pipeline watch {run_id}`."
                ) from error
            time.sleep(every_s)
            continue
        last_answer = time.monotonic()
        details = getattr(run, "run_details", None)
        for task in sorted(
            getattr(details, "task_details", None) or [], key=lambda task: str(task.start_time)
        ):
            name, state = task.display_name or task.task_id, task.state or ""
            if state and known.get(task.task_id) != state:
                known[task.task_id] = state
                yield Change(name, state, _message(task.error))
        if known.get("") != run.state:
            known[""] = run.state
            yield Change("", run.state or "PENDING", _message(run.error))
        if run.state in _ENDED:
            return
        time.sleep(every_s)


def _pipeline(endpoint: Endpoint, client: Any, package: Package) -> str:
    """Return the id of the pipeline of this name, which is made where there is none."""
    asking = f"looking for the pipeline {package.name!r}"
    found = asked(endpoint, asking, lambda: client.get_pipeline_id(package.name))
    if found is not None:
        return str(found)
    made = asked(
        endpoint,
        f"uploading {package.path.name}",
        lambda: client.upload_pipeline(
            str(package.path), pipeline_name=package.name, description="Exemplar"
        ),
    )
    return str(made.pipeline_id)


def _version(
    endpoint: Endpoint, client: Any, package: Package, pipeline_id: str
) -> tuple[str, str]:
    """Return name and id of the version with this content, which is uploaded where it is not."""
    name = package.digest[:12]
    asking = f"looking for the versions of {package.name!r}"
    versions = asked(endpoint, asking, lambda: _all_versions(client, pipeline_id))
    if name not in versions:
        made = asked(
            endpoint,
            f"uploading {package.path.name}",
            lambda: client.upload_pipeline_version(
                str(package.path), pipeline_version_name=name, pipeline_id=pipeline_id
            ),
        )
        versions[name] = made.pipeline_version_id
    return name, versions[name]


def _all_versions(client: Any, pipeline_id: str) -> dict[str, str]:
    found, token = {}, ""
    while True:
        page = client.list_pipeline_versions(pipeline_id, page_token=token, page_size=100)
        for item in page.pipeline_versions or []:
            found[item.display_name] = item.pipeline_version_id
        token = page.next_page_token or ""
        if not token:
            return found


def _message(error: Any) -> str:
    return " ".join(str(getattr(error, "message", None) or "").split())
