"""Runs the executors of a compiled pipeline as a pod does: command, arguments, ExecutorInput."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

TIME_LIMIT_S = 300
_BY_TYPE: Mapping[str, Any] = {
    "STRING": "",
    "NUMBER_INTEGER": 1,
    "NUMBER_DOUBLE": 1.0,
    "BOOLEAN": False,
    "LIST": [],
    "STRUCT": {},
    "TASK_FINAL_STATUS": {
        "state": "SUCCEEDED",
        "pipelineJobResourceName": "check",
        "pipelineTaskName": "check",
        "error": {"code": 0, "message": ""},
    },
}
_RAISED = re.compile(r"^(?:\w+\.)*(\w+)(?::|$)")
# Raised where the image lacks something. Anything else a step may say to inputs that are missing.
_OF_THE_IMAGE = re.compile(
    r"(?:ModuleNotFound|Import|Syntax|Name|Attribute|Permission)Error|KeyboardInterrupt"
)


@dataclass(frozen=True)
class Executor:
    """One executor of a pipeline, with the component that it carries out.

    `defaults`: those of the pipeline's own parameters.
    """

    name: str
    component: Mapping[str, Any]
    container: Mapping[str, Any]
    defaults: Mapping[str, Any]


@dataclass(frozen=True)
class Answer:
    """How an executor ended. `outputs`: what it wrote, or None where it stopped."""

    executor: str
    fine: bool
    said: str
    outputs: Mapping[str, Any] | None


def executors(pipeline: Path) -> Iterator[Executor]:
    """Every executor of a compiled pipeline. Raises `ValueError` where a component has none."""
    spec = next(yaml.safe_load_all(pipeline.read_text(encoding="utf-8")))
    containers = spec["deploymentSpec"]["executors"]
    parameters = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    defaults = {
        name: kind["defaultValue"] for name, kind in parameters.items() if "defaultValue" in kind
    }
    for component in spec["components"].values():
        label = component.get("executorLabel")
        if label is None:
            continue  # a pipeline inside the pipeline
        if label not in containers:
            raise ValueError(f"{pipeline}: no executor {label}, which a component names.")
        if "container" in containers[label]:
            yield Executor(label, component, containers[label]["container"], defaults)


def executor_input(
    component: Mapping[str, Any], folder: Path, parameters: Mapping[str, Any]
) -> dict[str, Any]:
    """What KFP's launcher tells a component: parameters, artifacts and places for the outputs.

    A parameter that is not given has its default, or the empty value of its type; an input
    artifact is a path at which there is nothing.
    """
    given = component.get("inputDefinitions", {})
    written = component.get("outputDefinitions", {})
    values = {
        name: parameters.get(name, kind.get("defaultValue", _BY_TYPE[kind["parameterType"]]))
        for name, kind in given.get("parameters", {}).items()
    }
    return {
        "inputs": {
            "parameterValues": values,
            "artifacts": {
                name: _artifact(name, kind, folder / "inputs")
                for name, kind in given.get("artifacts", {}).items()
                if not kind.get("isOptional")
            },
        },
        "outputs": {
            "parameters": {
                name: {"outputFile": str(folder / "parameters" / name)}
                for name in written.get("parameters", {})
            },
            "artifacts": {
                name: _artifact(name, kind, folder / "outputs")
                for name, kind in written.get("artifacts", {}).items()
            },
            "outputFile": str(folder / "executor_output.json"),
        },
    }


def run(
    executor: Executor,
    *,
    folder: Path,
    cwd: Path,
    environment: Mapping[str, str],
    parameters: Mapping[str, Any] | None = None,
) -> Answer:
    """Run one executor in an environment; its files go into `folder`.

    A parameter has the value given here, or the pipeline's default of that name, or the
    component's own.
    """
    for name in ("inputs", "parameters", "outputs"):
        (folder / name).mkdir(parents=True)
    values = {**executor.defaults, **(parameters or {})}
    told = json.dumps(executor_input(executor.component, folder, values))
    words = [*executor.container.get("command", []), *executor.container.get("args", [])]
    variables = {item["name"]: item["value"] for item in executor.container.get("env", [])}
    try:
        done = subprocess.run(
            [word.replace("{{$}}", told) for word in words],
            cwd=cwd,
            env={**environment, **variables},
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Answer(executor.name, False, f"did not start or end: {error}", None)
    written = folder / "executor_output.json"
    if done.returncode == 0:
        outputs = json.loads(written.read_text()) if written.is_file() else {}
        return Answer(executor.name, True, "ran to its end", outputs)
    lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    said = next((line for line in reversed(lines) if _RAISED.match(line)), "") or "nothing"
    raised = _RAISED.match(said)
    reached = "ephemeral_component.py" in done.stderr
    fine = reached and not (raised and _OF_THE_IMAGE.fullmatch(raised[1]))
    return Answer(executor.name, fine, f"exit code {done.returncode}: {said[:300]}", None)


def _artifact(name: str, kind: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    title = kind["artifactType"]
    return {"artifacts": [{"name": name, "type": title, "uri": str(folder / name), "metadata": {}}]}
