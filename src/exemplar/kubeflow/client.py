"""Sending compiled pipelines to a KFP endpoint, and watching their runs, by kfp.Client.

kfp.Client knows no time limit: a server that accepts a connection and says nothing would hold the
command for ever. So every call runs in a thread that the command waits for only so long.
"""

from __future__ import annotations

import contextlib
import io
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from exemplar.errors import PipelineError
from exemplar.kubeflow.package import Package

Value = TypeVar("Value")

SUCCEEDED = "SUCCEEDED"
_ENDED = {SUCCEEDED, "FAILED", "CANCELED", "CANCELLED", "SKIPPED"}
_LOST_SECONDS = 300
"""How long a server may be unreachable while a run is watched: a restart takes less."""


@dataclass(frozen=True)
class Endpoint:
    """A KFP endpoint, how to be let in, and how long to wait for an answer.

    `token`: sent as bearer; `cookie`: sent as is; `certificate`: a file of authorities.
    """

    host: str
    namespace: str = ""
    token: str = ""
    cookie: str = ""
    certificate: str = ""
    timeout_s: float = 30.0


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
    client = _connect(endpoint)
    namespace = endpoint.namespace or None

    def send() -> Submitted:
        target = client.create_experiment(name=experiment, namespace=namespace)
        pipeline_id, version_id, version = _upload(client, package)
        run = client.run_pipeline(
            experiment_id=target.experiment_id,
            job_name=run_name,
            params=dict(arguments),
            pipeline_id=pipeline_id,
            version_id=version_id,
            enable_caching=cached,
            service_account=service_account or None,
        )
        url = f"{endpoint.host.rstrip('/')}/#/runs/details/{run.run_id}"
        return Submitted(run.run_id, url, version)

    with contextlib.redirect_stdout(io.StringIO()):  # kfp.Client prints addresses, three of them
        return _asked(endpoint, f"sending {package.path.name}", send)


def watch(
    endpoint: Endpoint, run_id: str, *, every_s: float = 5.0, lost_s: float = _LOST_SECONDS
) -> Iterator[Change]:
    """Yield every change of state of a run and its tasks, the run's own last state at the end.

    A server that is away for less than `lost_s` seconds is asked again. Raises `PipelineError`
    where there is no such run.
    """
    client = _connect(endpoint)
    known: dict[str, str] = {}
    last_answer = time.monotonic()
    while True:
        try:
            run = _asked(endpoint, f"reading run {run_id}", lambda: client.get_run(run_id))
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


class UnreachableError(PipelineError):
    """The endpoint did not answer, or not in time; it may the next time."""


def _connect(endpoint: Endpoint) -> Any:
    """Return a client, once the endpoint has answered that it is well."""
    _asked(endpoint, "connecting", lambda: _probe(endpoint))
    import kfp

    def make() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # raised for every client
            return kfp.Client(
                host=endpoint.host,
                namespace=endpoint.namespace or "kubeflow",
                existing_token=endpoint.token or None,
                cookies=endpoint.cookie or None,
                ssl_ca_cert=endpoint.certificate or None,
            )

    return _asked(endpoint, "connecting", make)


def _probe(endpoint: Endpoint) -> None:
    """Ask for the endpoint's health: kfp.Client would ask five times, 25 s, and not say why."""
    import requests

    headers = {"Authorization": f"Bearer {endpoint.token}"} if endpoint.token else {}
    if endpoint.cookie:
        headers["Cookie"] = endpoint.cookie
    answer = requests.get(
        f"{endpoint.host.rstrip('/')}/apis/v2beta1/healthz",
        headers=headers,
        timeout=endpoint.timeout_s,
        verify=endpoint.certificate or True,
        allow_redirects=False,
    )
    if answer.is_redirect:  # to a page where a person logs in
        raise _refused(endpoint, answer.status_code)
    _require_well(endpoint, answer.status_code, answer.text)


def _upload(client: Any, package: Package) -> tuple[str, str, str]:
    """Return the ids of the pipeline and its version, and the version's name."""
    version = package.digest[:12]
    pipeline_id = client.get_pipeline_id(package.name)
    if pipeline_id is None:
        pipeline = client.upload_pipeline(
            str(package.path), pipeline_name=package.name, description="Exemplar"
        )
        pipeline_id = pipeline.pipeline_id
    versions = _all_versions(client, pipeline_id)
    if version not in versions:
        uploaded = client.upload_pipeline_version(
            str(package.path), pipeline_version_name=version, pipeline_id=pipeline_id
        )
        versions[version] = uploaded.pipeline_version_id
    return pipeline_id, versions[version], version


def _all_versions(client: Any, pipeline_id: str) -> dict[str, str]:
    found, token = {}, ""
    while True:
        page = client.list_pipeline_versions(pipeline_id, page_token=token, page_size=100)
        for item in page.pipeline_versions or []:
            found[item.display_name] = item.pipeline_version_id
        token = page.next_page_token or ""
        if not token:
            return found


def _asked(endpoint: Endpoint, doing: str, call: Callable[[], Value]) -> Value:
    """Return what `call` returns, in time, or raise `PipelineError` in plain words."""
    import requests
    import urllib3
    from kfp_server_api import ApiException

    try:
        return _in_time(call, endpoint.timeout_s)
    except (TimeoutError, requests.Timeout) as error:
        raise UnreachableError(
            f"{doing}: {endpoint.host} has not answered within {endpoint.timeout_s:g} s. It may be "
            "overloaded; try again, or wait longer with --timeout."
        ) from error
    except (urllib3.exceptions.HTTPError, requests.RequestException, OSError) as error:
        raise UnreachableError(
            f"{doing}: {endpoint.host} cannot be reached ({_cause(error)}). Check the address and "
            "that the server is up; for a cluster's own, that its port is forwarded."
        ) from error
    except ApiException as error:
        _require_well(endpoint, error.status, str(error.body or error.reason), doing)
        raise


def _in_time(call: Callable[[], Value], seconds: float) -> Value:
    """Return what `call` returns; raise `TimeoutError` after so many seconds and leave it alone."""
    from kfp_server_api import OpenApiException
    from urllib3.exceptions import HTTPError

    outcome: list[Value] = []
    failure: list[Exception] = []

    def work() -> None:
        try:
            outcome.append(call())
        except (OpenApiException, HTTPError, OSError, ValueError, RuntimeError) as error:
            failure.append(error)  # any other one is not foreseen: Python prints it

    thread = threading.Thread(target=work, daemon=True)  # does not keep the command from ending
    thread.start()
    thread.join(seconds)
    if failure:
        raise failure[0]
    if outcome:
        return outcome[0]
    if thread.is_alive():
        raise TimeoutError
    raise RuntimeError("the call to the endpoint ended in the error printed above")


def _require_well(endpoint: Endpoint, status: int, body: str, doing: str = "connecting") -> None:
    said = " ".join(body.split())[:300]
    if status in (401, 403):
        raise _refused(endpoint, status)
    if status == 404 and doing == "connecting":
        raise PipelineError(
            f"{endpoint.host} is no KFP endpoint: it has no /apis/v2beta1/healthz (404). Give the "
            "address of Kubeflow Pipelines 2 itself, for example http://localhost:8080 or "
            "https://HOST/pipeline."
        )
    if status >= 500:
        raise UnreachableError(
            f"{doing}: {endpoint.host} failed ({status}): {said}. Try again later."
        )
    if status >= 400:
        raise PipelineError(f"{doing}: {endpoint.host} refused it ({status}): {said}")


def _refused(endpoint: Endpoint, status: int) -> PipelineError:
    given = "the token" if endpoint.token else "the cookie" if endpoint.cookie else "no credentials"
    return PipelineError(
        f"{endpoint.host} does not let us in ({status}); it was given {given}. Set "
        "EXEMPLAR_KFP_TOKEN (a bearer token) or EXEMPLAR_KFP_COOKIE (a session), and check that "
        f"their account may use namespace {endpoint.namespace or '(none given)'}."
    )


def _cause(error: BaseException) -> str:
    """Return the innermost reason of a chain of errors, in one line."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return " ".join(str(error).split())[:200] or type(error).__name__


def _message(error: Any) -> str:
    return " ".join(str(getattr(error, "message", None) or "").split())
