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
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
WAIT_S = 120


class CheckError(Exception):
    """Something did not answer as it must."""


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
    database, store, server = _free_port(), _free_port(), _free_port()
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
        "MLFLOW_SERVER_ALLOWED_HOSTS": f"localhost:{server},mlflow:5000",
        "MLFLOW_HOST": "127.0.0.1",
        "MLFLOW_PORT": str(server),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }
    environment = {**os.environ, **values, "HOME": str(root)}
    uri = f"http://localhost:{server}"
    stack.enter_context(_postgres(root / "postgres", values, logs))
    stack.enter_context(
        _process([sys.executable, "-m", "moto.server", "-p", str(store)], environment, logs / "s3")
    )
    _script(python, "mlflow/make_bucket.py", environment)
    _script(python, "mlflow/make_bucket.py", environment)  # a second start must not fail
    words = [python, str(PROJECT / "mlflow" / "start_server.py")]
    process = stack.enter_context(_process(words, environment, logs / "mlflow"))
    began = time.monotonic()
    _until("the tracking server", lambda: _status(f"{uri}/health") == 200, process)
    print(f"tracking server: answers after {time.monotonic() - began:.1f} s, database made")

    passwords = {name: secrets.token_urlsafe(12) for name in ("pipeline", "serving")}
    admin = environment | _as("admin", values["MLFLOW_AUTH_ADMIN_PASSWORD"], uri)
    for name, password in passwords.items():
        admin |= {f"EXEMPLAR_USER_{name}": name, f"EXEMPLAR_PASSWORD_{name}": password}
    _script(python, "mlflow/make_users.py", admin)
    _refusals(uri, server, passwords)
    for name in ("pipeline", "serving"):
        _script(
            sys.executable,
            "infra/checks/clients.py",
            environment | _as(name, passwords[name], uri),
            name,
        )
    _stored(values, store)
    if (
        "X-Amz-Signature=" in (logs / "s3").read_text()
    ):  # an address that MLflow signed for a client
        raise CheckError("a client went past the server to the store, which it must not reach")
    passwords["serving"] = secrets.token_urlsafe(12)
    _script(
        python, "mlflow/make_users.py", admin | {"EXEMPLAR_PASSWORD_serving": passwords["serving"]}
    )
    new = environment | _as("serving", passwords["serving"], uri)
    _script(sys.executable, "infra/checks/clients.py", new, "serving")


def _refusals(uri: str, port: int, passwords: dict[str, str]) -> None:
    path = "/api/2.0/mlflow/experiments/search?max_results=1"
    known = ("pipeline", passwords["pipeline"])
    answers = {
        "with a password": _status(uri + path, known),
        "without a password": _status(uri + path),
        "with a wrong password": _status(uri + path, ("pipeline", "wrong-wrong-wrong")),
        "as mlflow:5000": _status(uri + path, known, host="mlflow:5000"),
        "as evil.example:80": _status(uri + path, known, host="evil.example:80"),
        "as 127.0.0.1": _status(f"http://127.0.0.1:{port}{path}", known),
    }
    print(", ".join(f"{how}: {status}" for how, status in answers.items()))
    if list(answers.values()) != [200, 401, 401, 200, 403, 403]:
        raise CheckError(f"expected 200, 401, 401, 200, 403, 403, got {answers}")


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


@contextmanager
def _postgres(folder: Path, values: dict[str, str], logs: Path) -> Iterator[None]:
    """A fresh PostgreSQL that asks for passwords. It refuses to run as root: then as postgres."""
    if shutil.which("initdb") is None or shutil.which("pg_ctl") is None:
        raise CheckError("initdb and pg_ctl are not on PATH (Debian: apt-get install postgresql).")
    user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"]
    prefix = user if os.geteuid() == 0 else []
    folder.mkdir()
    secret = folder / "password"
    secret.write_text(values["POSTGRES_PASSWORD"])
    if prefix:
        for path in (folder, secret):
            shutil.chown(path, "postgres", "postgres")
    secret.chmod(0o600)
    data = str(folder / "data")
    settings = f"-h 127.0.0.1 -p {values['POSTGRES_PORT']} -k {folder}"
    start = [
        *prefix,
        "pg_ctl",
        "-D",
        data,
        "-w",
        "-l",
        str(folder / "log"),
        "-o",
        settings,
        "start",
    ]
    initdb = ["initdb", "-D", data, "-U", "mlflow", "--auth=scram-sha-256", f"--pwfile={secret}"]
    with (logs / "postgres").open("w") as log:
        options = {"stdout": log, "stderr": subprocess.STDOUT, "cwd": folder, "check": True}
        subprocess.run([*prefix, *initdb], **options)
        subprocess.run(start, **options)
        try:
            words = ["createdb", "-h", "127.0.0.1", "-p", values["POSTGRES_PORT"], "-U", "mlflow"]
            environment = {**os.environ, "PGPASSWORD": values["POSTGRES_PASSWORD"]}
            subprocess.run([*words, "mlflow"], env=environment, **options)
            yield
        finally:
            subprocess.run([*prefix, "pg_ctl", "-D", data, "-m", "fast", "stop"], **options)


@contextmanager
def _process(
    words: list[str], environment: dict[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A process with its children, stopped at the end."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            words, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


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


def _status(url: str, user: tuple[str, str] | None = None, host: str | None = None) -> int:
    import requests

    try:
        headers = {"Host": host} if host else {}
        return requests.get(url, auth=user, headers=headers, timeout=10).status_code
    except requests.ConnectionError:
        return 0


def _until(what: str, ready: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + WAIT_S
    while not ready():
        if process.poll() is not None:
            raise CheckError(f"{what} stopped with exit code {process.returncode}")
        if time.monotonic() > end:
            raise CheckError(f"{what} did not answer for {WAIT_S} s")
        time.sleep(0.5)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
