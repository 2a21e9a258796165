"""What a component calls: settings and artifacts in, one step run, figures and costs out.

Artifacts are those of KFP's executor, whatever its version: only `path`, `metadata` and
`log_metric` are used. Every artifact carries in its metadata what it and all before it cost, in
the words of the cost files, so that the report has them without another input.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from exemplar import launch, steps
from exemplar.allocator import keep_freed_memory
from exemplar.data.io import fingerprint, write_json
from exemplar.data.shares import Shard
from exemplar.kubeflow.arguments import baseline_of, profile_of
from exemplar.kubeflow.nodes import Nodes
from exemplar.layout import Layout
from exemplar.models import cache_folder
from exemplar.seeding import derive_seed


class Artifact(Protocol):
    """An artifact as KFP's executor hands it over."""

    path: str
    metadata: dict[str, Any]


class Metrics(Artifact, Protocol):
    """An artifact whose figures the KFP page shows."""

    def log_metric(self, metric: str, value: float) -> None:
        """Show a figure."""


Inputs = Mapping[str, Artifact | Sequence[Artifact] | None]

RESUMING = ("llm_scoring", "reward_training", "kd_training")
"""Steps that go on from where a killed try stopped, if they find the folder again."""


def run(
    step: str,
    *,
    settings: Mapping[str, Any],
    inputs: Inputs,
    outputs: Mapping[str, Artifact],
    figures: Metrics,
    target: str = "",
    shard: str = "",
    nodes: str = "",
    **arguments: Any,
) -> None:
    """Run the step of this name.

    `settings`: the sections it reads; `inputs` and `outputs`: artifacts under the names that the
    step gives the paths; `target`: the round or baseline, as in the names of cost files; `nodes`:
    other pods that do the work together (`nodes.py`), if any.
    """
    keep_freed_memory()
    given = {name: item for name, item in inputs.items() if item}  # what is optional may be missing
    arguments |= {name: _paths(item) for name, item in given.items()}
    if step in RESUMING:
        arguments["work"] = _work_folder(step, settings, arguments)
    if shard:
        arguments["shard"] = Shard.parse(shard)
        target += f"-shard-{shard.replace('/', '-of-')}"
    arguments |= {name: Path(item.path) for name, item in outputs.items()}
    start = time.perf_counter()
    counts = _counts(step, settings, arguments, nodes)
    counts["seconds"] = round(time.perf_counter() - start, 2)
    costs = costs_of(given.values()) | {
        f"{target}/{step}": {"step": step, "target": target, **counts}
    }
    for item in outputs.values():
        item.metadata |= {"target": target, "costs": json.dumps(costs)}
    show(figures, counts)


def _counts(
    step: str, settings: Mapping[str, Any], arguments: Mapping[str, Any], nodes: str
) -> dict[str, Any]:
    """Run the step here, or on the nodes, and return what it returned."""
    if nodes:
        from exemplar.kubeflow.trainjob import train

        return train(step, settings=settings, arguments=arguments, nodes=Nodes.parse(nodes))
    processes = None if step in launch.STEPS else 1  # None: one a GPU of the pod
    function = getattr(steps, step)
    return dict(launch.torchrun(function, profile_of(settings), processes=processes, **arguments))


def kd_training(
    *,
    settings: Mapping[str, Any],
    inputs: Inputs,
    rewards: Artifact,
    earlier: Artifact,
    outputs: Mapping[str, Artifact],
    figures: Metrics,
    number: int,
    nodes: str,
) -> None:
    """Run the step `kd_training` on this round's rewards and those in the run's folder."""
    rounds = Layout(Path(earlier.path)).rounds()
    run(
        "kd_training",
        settings=settings,
        inputs=inputs,
        outputs=outputs,
        figures=figures,
        target=f"r{number}",
        nodes=nodes,
        number=number,
        rewards=[*(folder / "rewards.parquet" for folder in rounds.values()), Path(rewards.path)],
    )


def search(
    *,
    settings: Mapping[str, Any],
    data: Artifact,
    retriever: Artifact | None,
    method: Mapping[str, str],
    registered: str,
    outputs: Mapping[str, Artifact],
    figures: Metrics,
    target: str,
) -> None:
    """Run the step `search` by a retriever, a baseline's settings, or models:/NAME@ALIAS."""
    with tempfile.TemporaryDirectory(prefix="exemplar-") as temporary:
        arguments: dict[str, Any] = {}
        if registered:
            from exemplar.registry import versions
            from exemplar.tracking.store import open_store

            store = open_store(Path.cwd(), create=False)
            model = versions.fetch(store, registered, Path(temporary))
            arguments["method"] = model / "artifacts" / "bundle" / "encoder"
        elif method:
            arguments["method"] = baseline_of(method)
            outputs = {"out": outputs["out"]}  # a baseline proposes no candidates and is not served
        run(
            "search",
            settings=settings,
            inputs={"data": data, "method": retriever},
            outputs=outputs,
            figures=figures,
            target=target,
            **arguments,
        )


def show(figures: Metrics, counts: Mapping[str, Any]) -> None:
    """Show the figures of a step on its page, and keep them as its cost file."""
    for name, value in counts.items():
        if isinstance(value, int | float):
            figures.log_metric(name, value)
    write_json(Path(figures.path), dict(counts))


def costs_of(inputs: Any) -> dict[str, dict[str, Any]]:
    """Return what artifacts, or lists of them, and all before them cost, by target and step."""
    costs: dict[str, dict[str, Any]] = {}
    for item in inputs:
        for artifact in item if isinstance(item, list) else [item]:
            costs |= json.loads(artifact.metadata.get("costs", "{}"))
    return costs


def _paths(item: Artifact | Sequence[Artifact]) -> Path | list[Path]:
    if isinstance(item, Sequence):
        return [Path(artifact.path) for artifact in item]
    return Path(item.path)


def _work_folder(step: str, settings: Mapping[str, Any], arguments: Mapping[str, Any]) -> Path:
    """Name a folder by what is to be made: another try, or another run, of the same finds it.

    It lies in the cache, which on a cluster is a volume that outlives the pod.
    """
    made_from = [
        (name, [fingerprint(path) for path in (value if isinstance(value, list) else [value])])
        for name, value in sorted(arguments.items())
        if isinstance(value, Path | list) and name != "shares"
    ]
    others = [(n, v) for n, v in sorted(arguments.items()) if not isinstance(v, Path | list)]
    name = derive_seed(step, sorted(settings.items()), made_from, others)
    return cache_folder() / "work" / f"{step}-{name:016x}"
