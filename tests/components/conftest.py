"""Calling a KFP component's function in this process, on artifacts as KFP's executor makes them."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def component(project, workspace, tmp_path, monkeypatch) -> Callable[..., dict[str, Any]]:
    """Return a function that calls the component of a step.

    Parameters that hold settings come from the workspace's profile. A path becomes an artifact, a
    list of paths a list of artifacts; outputs come back by name, the return value as "Output".
    """
    from kfp import dsl

    from exemplar.kubeflow import arguments

    monkeypatch.setenv("HOME", str(tmp_path))  # where work that was interrupted is kept
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workspace.root / 'mlflow.db'}")
    settings = arguments.of_profile(workspace.profile, workspace.params.baselines)
    calls = iter(range(100))

    def artifact(value: Any) -> Any:
        if isinstance(value, Path):
            return dsl.Artifact(name=value.name, uri=str(value), metadata={"target": "bm25"})
        if isinstance(value, list) and all(isinstance(item, Path) for item in value):
            return [artifact(item) for item in value]
        return value

    def call(step: str, **given: Any) -> dict[str, Any]:
        path = project / "components" / step / "component.py"
        spec = importlib.util.spec_from_file_location(f"component_{step}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found = getattr(module, step)
        own = {name: settings[name] for name in settings if name in found.component_spec.inputs}
        folder = tmp_path / f"call-{next(calls)}"
        outputs = {}
        for name, output in (found.component_spec.outputs or {}).items():
            if "." in output.type:  # system.Dataset@0.0.1; a returned value has a plain type
                kind = getattr(dsl, output.type.partition("@")[0].partition(".")[2])
                outputs[name] = kind(name=name, uri=str(folder / name), metadata={})
        folder.mkdir()
        inputs = {name: artifact(value) for name, value in given.items()}
        returned = found.python_func(**own, **inputs, **outputs)
        made = {name: Path(item.path) for name, item in outputs.items()}
        if "figures" in made:
            shown = outputs["figures"].metadata
            assert shown == {
                name: value
                for name, value in json.loads(made["figures"].read_text()).items()
                if isinstance(value, int | float)
            }
        return {**made, "Output": returned, "artifacts": outputs}

    return call
