"""Makes MLflow's users, or gives those that exist their password anew: so it changes passwords too.

Run it as the administrator (MLFLOW_TRACKING_URI, _USERNAME and _PASSWORD). Users come from pairs of
variables: EXEMPLAR_USER_<NAME> and EXEMPLAR_PASSWORD_<NAME>. What a user makes, it may change;
everything else it may read.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from http import HTTPStatus

WAIT_S = 180
_USER, _PASSWORD = "EXEMPLAR_USER_", "EXEMPLAR_PASSWORD_"


def users(values: Mapping[str, str]) -> dict[str, str]:
    """The users and their passwords. Raises `ValueError` for a user without one, or for none."""
    found = {}
    for variable, name in values.items():
        if variable.startswith(_USER):
            password = values.get(_PASSWORD + variable.removeprefix(_USER), "")
            if not name or not password:
                raise ValueError(f"{variable} needs a name, and a password beside it.")
            found[name] = password
    if not found:
        raise ValueError(f"No user is named: set {_USER}... and {_PASSWORD}... .")
    return found


def main() -> None:
    """Wait for the server, then make or update every user."""
    from mlflow.exceptions import RestException
    from mlflow.server import get_app_client

    try:
        wanted = users(os.environ)
    except ValueError as error:
        sys.exit(str(error))
    uri = os.environ.get("MLFLOW_TRACKING_URI") or sys.exit("Not set: MLFLOW_TRACKING_URI.")
    end = time.monotonic() + WAIT_S
    while not _answers(uri):
        if time.monotonic() > end:
            sys.exit(f"{uri} did not answer for {WAIT_S} s.")
        time.sleep(2)
    client = get_app_client("basic-auth", tracking_uri=uri)
    for name, password in wanted.items():
        try:
            client.get_user(name)
        except RestException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                sys.exit(f"{uri} refuses: {error}")
            client.create_user(name, password)
            print(f"{name}: made")
        else:
            client.update_user_password(name, password)
            print(f"{name}: password set")


def _answers(uri: str) -> bool:
    import requests

    try:
        return requests.get(f"{uri.rstrip('/')}/health", timeout=5).status_code == HTTPStatus.OK
    except requests.RequestException:
        return False


if __name__ == "__main__":
    main()
