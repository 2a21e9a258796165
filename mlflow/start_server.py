"""Starts the tracking server on PostgreSQL and an S3 store, with users and a check of host names.

Everything comes from the environment; a missing value is an error before anything starts. The
database is brought to the schema of this MLflow version first, under a lock, so that several
servers may start at once. Addresses with passwords go into the environment and a private file,
never into arguments, which other processes can read.

    POSTGRES_HOST, POSTGRES_USER, POSTGRES_PASSWORD, POSTGRES_DB
    POSTGRES_PORT=5432, POSTGRES_SSLMODE=prefer
    MLFLOW_BUCKET                          files go to s3://MLFLOW_BUCKET/mlflow
    MLFLOW_S3_ENDPOINT_URL                 only for a store other than AWS
    AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY        unless the machine has a role
    MLFLOW_AUTH_ADMIN_USERNAME, MLFLOW_AUTH_ADMIN_PASSWORD          12 characters or more
    MLFLOW_FLASK_SERVER_SECRET_KEY         the same on all servers
    MLFLOW_SERVER_ALLOWED_HOSTS            names under which clients call, for example
                                           mlflow:5000,mlflow.example.org
    MLFLOW_SERVER_CORS_ALLOWED_ORIGINS     where browsers see its pages, which stay empty else:
                                           https://mlflow.example.org; localhost needs none
    MLFLOW_HOST=0.0.0.0, MLFLOW_PORT=5000, MLFLOW_WORKERS=2
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

REQUIRED = (
    "POSTGRES_HOST",
    "POSTGRES_USER",
    "POSTGRES_PASSWORD",
    "POSTGRES_DB",
    "MLFLOW_BUCKET",
    "MLFLOW_AUTH_ADMIN_USERNAME",
    "MLFLOW_AUTH_ADMIN_PASSWORD",
    "MLFLOW_FLASK_SERVER_SECRET_KEY",
    "MLFLOW_SERVER_ALLOWED_HOSTS",
)
WAIT_S = 120
_LOCK = 20307_07164  # any number that all servers of one database share
# Whoever makes an experiment or a model may change it; all others read it.
_AUTH = """[mlflow]
default_permission = READ
database_uri = {uri}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""


def database_uri(values: Mapping[str, str]) -> str:
    """The address of the database. The driver is named: SQLAlchemy's default for it has changed."""
    user, password, database = (
        quote(values[f"POSTGRES_{name}"], safe="") for name in ("USER", "PASSWORD", "DB")
    )
    place = f"{values['POSTGRES_HOST']}:{values.get('POSTGRES_PORT') or 5432}"
    tls = values.get("POSTGRES_SSLMODE") or "prefer"
    return f"postgresql+psycopg2://{user}:{password}@{place}/{database}?sslmode={tls}"


def auth_settings(uri: str) -> str:
    """The text of MLflow's file for users; a percent sign there stands for itself when doubled."""
    return _AUTH.format(uri=uri.replace("%", "%%"))


def command(values: Mapping[str, str]) -> list[str]:
    """The server's command line. The database's address is in the environment."""
    return [
        *(sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth"),
        *("--host", values.get("MLFLOW_HOST") or "0.0.0.0"),
        *("--port", values.get("MLFLOW_PORT") or "5000"),
        *("--workers", values.get("MLFLOW_WORKERS") or "2"),
        *("--serve-artifacts", "--artifacts-destination", f"s3://{values['MLFLOW_BUCKET']}/mlflow"),
        *("--allowed-hosts", values["MLFLOW_SERVER_ALLOWED_HOSTS"]),
    ]


def upgrade(uri: str, wait_s: float = WAIT_S) -> None:
    """Bring the tables of runs and of users to this version's schema.

    Waits for the database to answer. A second server waits until the first is done: MLflow itself
    has no lock, and two servers on an empty database would both make its tables.
    """
    import psycopg2
    from mlflow.db import commands
    from mlflow.server.auth.db.cli import commands as auth_commands

    end = time.monotonic() + wait_s
    while True:
        try:
            connection = psycopg2.connect(uri.replace("+psycopg2", "", 1))
            break
        except psycopg2.OperationalError as error:
            if "authentication failed" in str(error) or time.monotonic() > end:
                sys.exit(f"PostgreSQL cannot be used: {str(error).strip()}")
            time.sleep(1)
    with connection, connection.cursor() as cursor:  # the lock ends with the transaction
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        commands.main(["upgrade", uri], standalone_mode=False)
        auth_commands.main(["upgrade", "--url", uri], standalone_mode=False)
    connection.close()


def main() -> None:
    """Check, upgrade, and become the server."""
    missing = [name for name in REQUIRED if not os.environ.get(name)]
    if missing:
        sys.exit(f"Not set: {', '.join(missing)}. What each is: the top of {Path(__file__).name}.")
    uri = database_uri(os.environ)
    descriptor, settings = tempfile.mkstemp(prefix="mlflow-", suffix=".ini")  # its owner's alone
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(auth_settings(uri))
    os.environ["MLFLOW_AUTH_CONFIG_PATH"] = settings
    os.environ["MLFLOW_BACKEND_STORE_URI"] = uri
    # Seven processes for what nothing here uses.
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    upgrade(uri)
    words = command(os.environ)
    os.execv(words[0], words)


if __name__ == "__main__":
    main()
