"""Writes each component's README.md and metadata.yaml from its code and the cluster's settings.

python components/describe.py            # write them
python components/describe.py --check    # exit code 1 if any is out of date
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import docstring_parser
import yaml

PROJECT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT)]

from exemplar.kubeflow.arguments import BASELINES, SECTIONS  # noqa: E402
from exemplar.kubeflow.cluster import Cluster, load_cluster  # noqa: E402
from exemplar.layout import STEPS  # noqa: E402

KFP = ">=2.17"
HEAD = """# Components

One component of Kubeflow Pipelines a step, each a signature and one call on the package. How they
make a pipeline: [pipelines/](../pipelines). This page and those it leads to are written by
`python components/describe.py`.
"""
EXTERNAL: Mapping[str, str] = {"promotion": "MLflow", "report": "MLflow", "search": "MLflow"}


def files() -> Iterator[tuple[Path, str]]:
    """Yield every generated file with its content."""
    cluster = load_cluster(PROJECT / "infra/kubernetes/profile.yaml")
    rows = []
    for step in STEPS:
        component = getattr(importlib.import_module(f"components.{step}.component"), step)
        told = docstring_parser.parse(component.python_func.__doc__)
        folder = PROJECT / "components" / step
        yield folder / "README.md", readme(step, component.component_spec, told, cluster)
        yield folder / "metadata.yaml", metadata(step, told)
        rows.append(f"| [{step}]({step}/README.md) | {told.short_description} |")
    table = "\n".join(["| step | does |", "|---|---|", *rows])
    yield (
        PROJECT / "components" / "README.md",
        f"{HEAD}\n{table}\n",
    )


def readme(step: str, spec: Any, told: Any, cluster: Cluster) -> str:
    """Return the page of one component."""
    words = {item.arg_name: " ".join(item.description.split()) for item in told.params}
    inputs = [
        f"| `{name}` | {kind(item)} | {'no' if item.optional else 'yes'} | {words[name]} |"
        for name, item in (spec.inputs or {}).items()
    ]
    outputs = [
        f"| `{name}` | {kind(item)} | {words.get(name, 'Returned.')} |"
        for name, item in (spec.outputs or {}).items()
    ]
    own = cluster.steps[step]
    machine = "the chosen hardware" if own.model else "`light`"
    pod = [
        f"Runs on {machine}, at most {own.timeout_hours} h a try, {own.retries} retries.",
        f"Secrets: {', '.join(f'`{name}`' for name in own.secrets) or 'none'}.",
    ]
    parts = [
        f"# {step}",
        told.short_description,
        *([told.long_description] if told.long_description else []),
        "\n".join(
            ["## Inputs", "", "| name | type | needed | meaning |", "|---|---|---|---|", *inputs]
        ),
        "\n".join(["## Outputs", "", "| name | type | meaning |", "|---|---|---|", *outputs]),
        "\n".join(["## Pod", "", *pod]),
    ]
    return "\n\n".join(parts) + "\n"


def metadata(step: str, told: Any) -> str:
    """Return the component's entry, in the form of kubeflow/pipelines-components."""
    external = [{"name": EXTERNAL[step]}] if step in EXTERNAL else []
    entry = {
        "name": step,
        "description": told.short_description,
        "stability": "beta",
        "dependencies": {
            "kubeflow": [{"name": "Pipelines", "version": KFP}],
            "external_services": external,
        },
        "settings": [n for n in (*SECTIONS, BASELINES) if n in {p.arg_name for p in told.params}],
        "tags": ["few-shot", "retrieval", "exemplar"],
    }
    return yaml.safe_dump(entry, sort_keys=False, width=100)


def kind(item: Any) -> str:
    """Return a type as people write it: Dataset, not system.Dataset@0.0.1."""
    name = str(item.type).removeprefix("system.").partition("@")[0]
    return f"list of {name}" if getattr(item, "is_artifact_list", False) else name


def main() -> int:
    """Write or check the files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing, say what is stale")
    check = parser.parse_args().check
    stale = [
        path for path, text in files() if not path.is_file() or path.read_text("utf-8") != text
    ]
    if check:
        for path in stale:
            sys.stderr.write(f"{path.relative_to(PROJECT)} is out of date\n")
        return bool(stale)
    for path, text in files():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
