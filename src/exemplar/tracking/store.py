"""Opening a tracking store: an SQLite file, another database, or a server.

MLflow is imported inside functions: it takes a second.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from exemplar.errors import RegistryError

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SQLITE = "sqlite:///"
_SERVERS = ("http://", "https://", "databricks", "uc:")
_ROOT = "MLFLOW_DEFAULT_ARTIFACT_ROOT"


@dataclass(frozen=True)
class Store:
    """An open tracking store with its registry, and one experiment in it ("" for none)."""

    uri: str
    experiment: str
    experiment_id: str
    client: MlflowClient

    @property
    def place(self) -> str:
        """The address for people to read: without a password."""
        return without_password(self.uri)


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
    `artifacts`: folder for the files of a new experiment. Default: what the environment variable
    MLFLOW_DEFAULT_ARTIFACT_ROOT names, else `mlartifacts` beside an SQLite file; another database
    needs one of the two, a server decides for itself. Without an experiment there are models to
    read but no runs to log. With `create=False` a missing database or experiment is an error.
    Raises `RegistryError`, also where the store cannot be reached.
    """
    _hush()
    from mlflow import MlflowClient

    uri = store_uri(where) if isinstance(where, Path) else where
    place = without_password(uri)
    with explained(f"opening the MLflow store {place}"):
        if uri.startswith(_SQLITE):
            database = Path(uri.removeprefix(_SQLITE)).absolute()
            uri = f"{_SQLITE}{database}"
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
                    f"MLflow experiment {experiment!r} at {place} is deleted. Restore it with "
                    f"`mlflow experiments restore -x {found.experiment_id}`, or choose another "
                    "name in params.yaml (promotion.experiment)."
                )
            return Store(uri, experiment, found.experiment_id, client)
        _missing(f"MLflow at {place} has no experiment {experiment!r}", create)
        identity = _create_experiment(client, experiment, _location(uri, artifacts))
    return Store(uri, experiment, identity, client)


def without_password(uri: str) -> str:
    """Return an address as it may be shown."""
    return re.sub(r"://([^:/@]*):.*@", r"://\1:***@", uri)


@contextmanager
def explained(doing: str) -> Iterator[None]:
    """Turn MLflow's and the database's errors into one `RegistryError` that says what was tried."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        first = without_password(str(error).strip().split("\n")[0].rstrip("."))
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


def _location(uri: str, artifacts: Path | None) -> str | None:
    """Return where the files of a new experiment go; None where a server decides."""
    if artifacts is not None:
        return artifacts.absolute().as_uri()
    if uri.startswith(_SERVERS):
        return None
    if root := os.environ.get(_ROOT, "").strip():
        return root
    if uri.startswith(_SQLITE):
        return (Path(uri.removeprefix(_SQLITE)).parent / "mlartifacts").as_uri()
    raise RegistryError(
        f"{without_password(uri)} is a database, which says nothing about where files go: MLflow "
        f"would put them into the current folder. Set {_ROOT}, for example to s3://BUCKET/mlflow, "
        "or use the address of a tracking server."
    )
