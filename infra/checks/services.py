"""Run what infra/compose.yaml runs, without containers, and log a run and a model through it.

PostgreSQL is the one of this machine, the S3 store is moto's server (which does not check
signatures); the tracking server, the bucket and the users are made by the scripts of mlflow/ with
the environment of the compose file. Then, over HTTP: a call without a password, under a foreign
host name or by a user without rights must be refused; a run and a retriever must arrive, be
promoted and answer; files must lie in the bucket, rows in PostgreSQL; a password must change.

It takes about a minute. Needs `initdb` and `pg_ctl` (Debian: apt-get install postgresql) and
`pip install 'exemplar[dev]'`.

Examples:
    python infra/checks/services.py
    python infra/checks/services.py --python build/server/opt/mlflow/bin/python
"""

from __future__ import annotations

import argparse
import os
import secrets
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from processes import CheckError, free_port, postgres, process, until

PROJECT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Start everything, check, and stop everything."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--logs", type=Path, help="a folder for the services' logs, kept")
    parser.add_argument(
        "--python",
        default=sys.executable,
        help="the Python of the server and its scripts, for example of a replayed image",
    )
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="services-") as temporary, ExitStack() as stack:
        root = Path(temporary)
        root.chmod(0o711)  # PostgreSQL's own user must get through
        logs = options.logs or root / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        try:
            check(stack, root, logs, options.python)
        except (CheckError, OSError, subprocess.CalledProcessError) as error:
            print(f"WRONG: {error}", file=sys.stderr)
            for log in sorted(logs.iterdir()):
                print(f"--- {log.name}\n{log.read_text()[-2000:]}", file=sys.stderr)
            return 1
    print(f"All right, in {time.monotonic() - started:.0f} s.")
    return 0


def check(stack: ExitStack, root: Path, logs: Path, python: str) -> None:
    """The whole check; the stack stops what it starts."""
    database, store, server, second = (free_port() for _ in range(4))
    values = {
        "POSTGRES_HOST": "127.0.0.1",
        "POSTGRES_PORT": str(database),
        "POSTGRES_USER": "mlflow",
        "POSTGRES_PASSWORD": "p%40 ss/" + secrets.token_urlsafe(9),  # what addresses must escape
        "POSTGRES_DB": "mlflow",
        "MLFLOW_BUCKET": "exemplar",
        "MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{store}",
        "AWS_ACCESS_KEY_ID": "exemplar",
        "AWS_SECRET_ACCESS_KEY": secrets.token_urlsafe(18),
        "AWS_DEFAULT_REGION": "us-east-1",
        "MLFLOW_AUTH_ADMIN_USERNAME": "admin",
        "MLFLOW_AUTH_ADMIN_PASSWORD": secrets.token_urlsafe(18),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_urlsafe(18),
        "MLFLOW_SERVER_ALLOWED_HOSTS": f"localhost:{server},localhost:{second},mlflow:5000",
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": "https://mlflow.example.org",
        "MLFLOW_HOST": "127.0.0.1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }
    environment = {**os.environ, **values, "HOME": str(root)}
    uri = f"http://localhost:{server}"
    stack.enter_context(postgres(root / "postgres", values, logs))
    stack.enter_context(
        process([sys.executable, "-m", "moto.server", "-p", str(store)], environment, logs / "s3")
    )
    _script(python, "mlflow/make_bucket.py", environment)
    _script(python, "mlflow/make_bucket.py", environment)  # a second start must not fail
    started: dict[int, subprocess.Popen[bytes]] = {}
    words = [python, str(PROJECT / "mlflow" / "start_server.py")]
    began = time.monotonic()
    for port in (server, second):  # both at once, on an empty database
        own = environment | {"MLFLOW_PORT": str(port), "MLFLOW_WORKERS": "1"}
        started[port] = stack.enter_context(process(words, own, logs / f"mlflow-{port}"))
    for port, server_process in started.items():
        health = f"http://localhost:{port}/health"
        until("the tracking server", lambda url=health: _status(url) == 200, server_process)
    print(f"two tracking servers: answer after {time.monotonic() - began:.1f} s, database made")

    passwords = {name: secrets.token_urlsafe(12) for name in ("pipeline", "serving")}
    admin = environment | _as("admin", values["MLFLOW_AUTH_ADMIN_PASSWORD"], uri)
    for name, password in passwords.items():
        admin |= {f"EXEMPLAR_USER_{name}": name, f"EXEMPLAR_PASSWORD_{name}": password}
    _script(python, "mlflow/make_users.py", admin)
    _refusals(uri, server, second, passwords)
    for name in ("pipeline", "serving"):
        user = environment | _as(name, passwords[name], uri)
        _script(sys.executable, "infra/checks/clients.py", user, name)
    _stored(values, store)
    if "X-Amz-Signature=" in (logs / "s3").read_text():  # in addresses signed for clients alone
        raise CheckError("a client went past the server to the store, which it must not reach")
    other = secrets.token_urlsafe(12)
    _script(python, "mlflow/make_users.py", admin | {"EXEMPLAR_PASSWORD_serving": other})
    user = environment | _as("serving", other, uri)
    _script(sys.executable, "infra/checks/clients.py", user, "serving")


def _refusals(uri: str, port: int, second: int, passwords: dict[str, str]) -> None:
    path = "/api/2.0/mlflow/experiments/search?max_results=1"
    known = ("pipeline", passwords["pipeline"])
    answers = {
        "with a password": _status(uri + path, known),
        "by the second server": _status(f"http://localhost:{second}{path}", known),
        "without a password": _status(uri + path),
        "with a wrong password": _status(uri + path, ("pipeline", "wrong-wrong-wrong")),
        "as mlflow:5000": _status(uri + path, known, host="mlflow:5000"),
        "as evil.example:80": _status(uri + path, known, host="evil.example:80"),
        "as 127.0.0.1": _status(f"http://127.0.0.1:{port}{path}", known),
    }
    for origin in ("https://mlflow.example.org", "https://evil.example"):
        answers[f"from pages of {origin}"] = _status(uri + path, known, origin=origin)
    print(", ".join(f"{how}: {status}" for how, status in answers.items()))
    expected = [200, 200, 401, 401, 200, 403, 403, 200, 403]
    if list(answers.values()) != expected:
        raise CheckError(f"expected {expected}, got {answers}")


def _stored(values: dict[str, str], port: int) -> None:
    import boto3
    import psycopg2

    store = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        aws_access_key_id=values["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=values["AWS_SECRET_ACCESS_KEY"],
        region_name="us-east-1",
    )
    keys = [item["Key"] for item in store.list_objects_v2(Bucket="exemplar").get("Contents", [])]
    if not any(key.startswith("mlflow/") and key.endswith("model.safetensors") for key in keys):
        raise CheckError(f"the bucket holds no weights below mlflow/, only {keys}")
    connection = psycopg2.connect(
        host="127.0.0.1",
        port=values["POSTGRES_PORT"],
        user="mlflow",
        password=values["POSTGRES_PASSWORD"],
        dbname="mlflow",
    )
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT (SELECT count(*) FROM model_versions), (SELECT count(*) FROM users)")
        counts = cursor.fetchone()
    connection.close()
    print(f"bucket: {len(keys)} files; PostgreSQL: {counts[0]} model version, {counts[1]} users")
    if counts != (1, 3):
        raise CheckError(f"expected 1 model version and 3 users in PostgreSQL, got {counts}")


def _script(python: str, path: str, environment: dict[str, str], *arguments: str) -> None:
    """Run a script in a process of its own: MLflow reads its user from the environment."""
    name = Path(path).name
    done = subprocess.run(
        [python, "-W", "ignore", str(PROJECT / path), *arguments],
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise CheckError(f"{name}: {done.stderr[-2000:]}")
    print(" ".join([f"{name}:", *arguments, *done.stdout.split()]))


def _as(user: str, password: str, uri: str) -> dict[str, str]:
    return {
        "MLFLOW_TRACKING_URI": uri,
        "MLFLOW_TRACKING_USERNAME": user,
        "MLFLOW_TRACKING_PASSWORD": password,
    }


def _status(
    url: str,
    user: tuple[str, str] | None = None,
    *,
    host: str | None = None,
    origin: str | None = None,
) -> int:
    """The status of a GET or, as MLflow's pages send them, of a POST with an origin."""
    import requests

    headers = {"Host": host, "Origin": origin}
    try:
        if origin:
            url, body = url.partition("?")[0], {"max_results": 1}
            return requests.post(url, json=body, auth=user, headers=headers, timeout=10).status_code
        return requests.get(url, auth=user, headers=headers, timeout=10).status_code
    except requests.ConnectionError:
        return 0


if __name__ == "__main__":
    sys.exit(main())
