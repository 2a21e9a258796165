"""A KFP endpoint: letting a kfp.Client in, and asking it with a time limit and plain words.

kfp.Client knows no time limit: a server that accepts a connection and says nothing would hold the
command for ever. So every call runs in a thread that the command waits for only so long.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from exemplar.errors import PipelineError

Value = TypeVar("Value")


@dataclass(frozen=True)
class Endpoint:
    """A KFP endpoint, how to be let in, and how long to wait for each answer.

    `host`: its address, without a slash at the end. `token`: sent as bearer; `cookie`: sent as is;
    `certificate`: a file of authorities.
    """

    host: str
    namespace: str = ""
    token: str = ""
    cookie: str = ""
    certificate: str = ""
    timeout_s: float = 30.0


class UnreachableError(PipelineError):
    """The endpoint did not answer, or not in time; it may the next time."""


def connect(endpoint: Endpoint) -> Any:
    """Return a client, once the endpoint has answered that it is well."""
    asked(endpoint, "connecting", lambda: _probe(endpoint))
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

    return asked(endpoint, "connecting", make)


def _probe(endpoint: Endpoint) -> None:
    """Ask for the endpoint's health: kfp.Client would ask five times, 25 s, and not say why."""
    import requests

    headers = {"Authorization": f"Bearer {endpoint.token}"} if endpoint.token else {}
    if endpoint.cookie:
        headers["Cookie"] = endpoint.cookie
    answer = requests.get(
        f"{endpoint.host}/apis/v2beta1/healthz",
        headers=headers,
        timeout=endpoint.timeout_s,
        verify=endpoint.certificate or True,
        allow_redirects=False,
    )
    if answer.is_redirect:  # to a page where a person logs in
        raise _refused(endpoint, answer.status_code)
    _require_well(endpoint, answer.status_code, answer.text)


def asked(endpoint: Endpoint, doing: str, call: Callable[[], Value]) -> Value:
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
