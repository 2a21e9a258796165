"""Running a compiled pipeline on this machine: each task a process, no container, no cluster."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from exemplar.data.io import read_json
from exemplar.errors import PipelineError
from exemplar.kubeflow.package import Package
from exemplar.layout import Layout
from exemplar.tracking.store import store_uri

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Finished:
    """A run that succeeded: its folder, and in it the run's folder after the last promotion."""

    folder: Path
    run: Path
    page: Path


def run_here(
    package: Package,
    arguments: Mapping[str, Any],
    *,
    outputs: Path,
    root: Path,
    say: Callable[[str], None],
) -> Finished:
    """Execute a compiled pipeline with KFP's local runner, in this Python's environment.

    `outputs`: folder in which the run gets one of its own; `root`: where `mlflow.db` lies unless
    MLFLOW_TRACKING_URI is set; `say` is called with a line for every finished task. The tasks' own
    words go into run.log in the run's folder. Raises `PipelineError` where a task fails.
    """
    import kfp

    folder = outputs.resolve() / time.strftime("%Y%m%d-%H%M%S")
    folder.mkdir(parents=True, exist_ok=True)
    log, message = folder / "run.log", ""
    with (
        tempfile.TemporaryDirectory(prefix="exemplar-") as temporary,
        _environment(TMPDIR=temporary, MLFLOW_TRACKING_URI=store_uri(root)),
        _following(folder, say),
        log.open("w", encoding="utf-8") as file,
        contextlib.redirect_stdout(file),
        warnings.catch_warnings(),
    ):
        # Of cluster settings, which have no effect here, and of image names.
        warnings.filterwarnings("ignore", category=UserWarning, module=r"kfp\.")
        tempfile.tempdir = None  # read TMPDIR again: KFP leaves a folder there for every task
        kfp.local.init(runner=kfp.local.SubprocessRunner(use_venv=False), pipeline_root=str(folder))
        try:
            kfp.components.load_component_from_text(_without_retries(package.path))(**arguments)
        except RuntimeError as error:
            message = _COLOUR.sub("", str(error)).strip().rstrip(".")
        finally:
            tempfile.tempdir = None
    if message:
        raise PipelineError(
            f"{message}. What its process said is at the end of {log}; mend that and run again: "
            "scoring and trainings go on from where they stopped."
        )
    runs = sorted(folder.glob("**/promotion*/run"), key=_last_round)
    pages = sorted(folder.glob("**/report*/page"), key=_methods)
    return Finished(folder, runs[-1], pages[-1])


def _without_retries(path: Path) -> str:
    """Return the pipeline without its retries: what fails here is no lost node, and fails again."""
    documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    spec = documents[0]
    for dag in [spec["root"], *spec["components"].values()]:
        for task in dag.get("dag", {}).get("tasks", {}).values():
            task.pop("retryPolicy", None)
    return yaml.safe_dump_all(documents, sort_keys=True)


def _methods(page: Path) -> int:
    """Count what a report compares: the last one has most rounds, whenever it was written."""
    return len(read_json(page.parent / "tables" / "metrics" / "rounds.json"))


def _last_round(run: Path) -> int:
    return max(Layout(run).rounds())


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Set variables for the tasks' processes, and put back what was there."""
    values |= {"TOKENIZERS_PARALLELISM": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _following(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Say which tasks have finished, as their outputs appear."""
    stop, seen, start = threading.Event(), set[Path](), time.monotonic()

    def look() -> None:
        for path in sorted(folder.rglob("executor_output.json"), key=lambda p: p.stat().st_mtime):
            if path not in seen:
                seen.add(path)
                name = "/".join(path.parent.relative_to(folder).parts[1:])
                say(f"{time.monotonic() - start:7.1f} s  {name}")

    def follow() -> None:
        while not stop.wait(_POLL_SECONDS):
            look()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        look()
