"""Processes for infra/checks/services.py: started, waited for, and always stopped."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

WAIT_S = 120


class CheckError(Exception):
    """Something did not answer as it must."""


@contextmanager
def postgres(folder: Path, values: dict[str, str], logs: Path) -> Iterator[None]:
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
    control = [*prefix, "pg_ctl", "-D", data, "-w", "-l", str(folder / "log"), "-o", settings]
    initdb = ["initdb", "-D", data, "-U", "mlflow", "--auth=scram-sha-256", f"--pwfile={secret}"]
    with (logs / "postgres").open("w") as log:
        options = {"stdout": log, "stderr": subprocess.STDOUT, "cwd": folder, "check": True}
        subprocess.run([*prefix, *initdb], **options)
        subprocess.run([*control, "start"], **options)
        try:
            words = ["createdb", "-h", "127.0.0.1", "-p", values["POSTGRES_PORT"], "-U", "mlflow"]
            environment = {**os.environ, "PGPASSWORD": values["POSTGRES_PASSWORD"]}
            subprocess.run([*words, "mlflow"], env=environment, **options)
            yield
        finally:
            subprocess.run([*prefix, "pg_ctl", "-D", data, "-m", "fast", "stop"], **options)


@contextmanager
def process(
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


def until(what: str, ready: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Wait for a process to answer; `CheckError` where it stops, or takes too long."""
    end = time.monotonic() + WAIT_S
    while not ready():
        if process.poll() is not None:
            raise CheckError(f"{what} stopped with exit code {process.returncode}")
        if time.monotonic() > end:
            raise CheckError(f"{what} did not answer for {WAIT_S} s")
        time.sleep(0.5)


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
