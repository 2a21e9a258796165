"""Compiled pipelines, looked at by KFP's own messages, and a server that takes them in."""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path

import pytest

LONGEST_ARGUMENT = 131_072  # of Linux, in bytes; beyond it a pod cannot start its command


@pytest.fixture(scope="session", autouse=True)
def _quick_stacks():
    """Spare KFP the source lines of the stack: it wants one name of it, task by task.

    Below pytest's frames that takes most of a compilation.
    """
    whole = inspect.stack
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inspect, "stack", lambda context=0: whole(0))
        yield


@pytest.fixture(name="check_whole", scope="session")
def _check_whole():
    """Return `check_whole`."""
    return check_whole


@pytest.fixture(scope="session")
def kfp_server():
    """Return the class of the server."""
    path = Path(__file__).parent / "kfp_server.py"
    spec = importlib.util.spec_from_file_location("kfp_server", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.KfpServer


def check_whole(spec: dict, platform: dict) -> None:
    """Parse a compiled pipeline by KFP's own messages, and walk its graph for dangling names."""
    from google.protobuf import json_format
    from kfp.kubernetes.kubernetes_executor_config_pb2 import KubernetesExecutorConfig
    from kfp.pipeline_spec import pipeline_spec_pb2

    json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec())
    json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec())
    executors = spec["deploymentSpec"]["executors"]
    pods = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert set(pods) == set(executors)
    for pod in pods.values():
        json_format.ParseDict(pod, KubernetesExecutorConfig())
    used = set()
    for component in [spec["root"], *spec["components"].values()]:
        tasks = component.get("dag", {}).get("tasks", {})
        for task in tasks.values():
            called = spec["components"][task["componentRef"]["name"]]
            used.add(task["componentRef"]["name"])
            assert set(task.get("dependentTasks", [])) <= set(tasks)
            given = task.get("inputs", {})
            for kind in ("parameters", "artifacts"):
                declared = called.get("inputDefinitions", {}).get(kind, {})
                asked = {key for key, item in declared.items() if not item.get("isOptional")}
                items = set(given.get(kind, {}))
                item = task.get("parameterIterator", {}).get("itemInput")
                assert asked - {item} <= items <= set(declared)
                for item in given.get(kind, {}).values():
                    check_source(item, component, tasks, spec)
    assert used == set(spec["components"])
    for component in spec["components"].values():
        assert "dag" in component or component["executorLabel"] in executors
    for executor in executors.values():
        container = executor["container"]
        words = [*container["command"], *container["args"]]
        assert max(len(word.encode()) for word in words) < LONGEST_ARGUMENT
        assert not any("pip install" in word for word in words)
        assert "python" in container["image"]  # KFP warns of others, task by task


def check_source(item: dict, component: dict, tasks: dict, spec: dict) -> None:
    """Whether an input comes from something that exists."""
    for key, kind in (
        ("componentInputParameter", "parameters"),
        ("componentInputArtifact", "artifacts"),
    ):
        if key in item:
            assert item[key] in component["inputDefinitions"][kind]
    for key, name in (
        ("taskOutputParameter", "outputParameterKey"),
        ("taskOutputArtifact", "outputArtifactKey"),
    ):
        if key in item:
            producer = tasks[item[key]["producerTask"]]
            outputs = spec["components"][producer["componentRef"]["name"]]["outputDefinitions"]
            assert item[key][name] in {
                **outputs.get("parameters", {}),
                **outputs.get("artifacts", {}),
            }
