"""Compiling the pipelines of the folder pipelines/ into YAML, the same bytes every time."""

from __future__ import annotations

import importlib
import inspect
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import dropwhile
from pathlib import Path
from typing import Any

from exemplar.data.io import write_text
from exemplar.errors import ConfigError
from exemplar.kubeflow.arguments import BASELINES, SECTIONS
from exemplar.kubeflow.plan import Plan

PIPELINES = ("iteration", "round")

_TYPES: Mapping[str, type] = {"seed": int, BASELINES: list}  # all others are JSON texts


def compile_pipeline(
    name: str, plan: Plan, defaults: Mapping[str, Any], out: Path, *, project: Path
) -> int:
    """Compile the pipeline of this name to the file `out`, and return its size in bytes.

    `defaults`: the arguments (`arguments.of_profile`) that a run takes which is sent without any;
    `project`: the root of the project, where pipelines/ and components/ lie.
    """
    from kfp.compiler import Compiler

    with _importing_from(project):
        module = importlib.import_module(f"pipelines.{name}")
    values = dict(defaults)
    if plan.retriever:
        values["registered"] = plan.retriever
    pipeline = _pipeline(module, plan, values)
    with tempfile.TemporaryDirectory(prefix="exemplar-") as temporary:
        path = Path(temporary) / "pipeline.yaml"
        Compiler().compile(pipeline, str(path))
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    # KFP's opening comment shows defaults in an order that differs from process to process.
    body = "".join(dropwhile(lambda line: line.startswith("#"), lines))
    text = f"# Written by `exemplar pipeline compile {name}`; run or submit it as it is.\n{body}"
    write_text(out, text)
    return len(text.encode())


def _pipeline(module: Any, plan: Plan, defaults: Mapping[str, Any]) -> Any:
    """Make the pipeline's function, with one parameter a section of the settings."""
    from kfp import dsl

    def body(*values: Any) -> None:
        module.build(plan, dict(zip(defaults, values, strict=True)))

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [
        inspect.Parameter(name, kind, default=value, annotation=_TYPES.get(name, str))
        for name, value in defaults.items()
    ]
    body.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    body.__annotations__ = {item.name: item.annotation for item in parameters}
    body.__doc__ = (module.__doc__ or "").strip()
    decorate: Callable[[Any], Any] = dsl.pipeline(name=module.NAME)
    return decorate(body)


@contextmanager
def _importing_from(project: Path) -> Iterator[None]:
    """Find the project's folders pipelines and components, before anything of the same name."""
    if not (project / "pipelines").is_dir() or not (project / "components").is_dir():
        raise ConfigError(
            f"{project.resolve()} has no folders pipelines and components. Run from the project's "
            "root."
        )
    root = str(project.resolve())
    sys.path.insert(0, root)
    try:
        yield
    finally:
        sys.path.remove(root)


assert set(_TYPES) <= {*SECTIONS, BASELINES}
