"""The folder of a run, grown round by round: what promotion and report read, and keep.

It is laid out as a workspace (`layout.py`), without the data and the weights. On a cluster it is an
artifact that each round's promotion reads and writes anew; `exemplar summary --root` shows it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from exemplar import steps
from exemplar.data.io import atomic_folder, read_json, write_json, write_text
from exemplar.errors import ConfigError
from exemplar.kubeflow.arguments import params_of
from exemplar.kubeflow.mlflow_run import require_address
from exemplar.kubeflow.pod import Artifact, Metrics, costs_of, show
from exemplar.layout import Layout

_KEPT = {
    "rewards": "rewards.parquet",
    "demonstrations": "demonstrations.parquet",
    "evaluation": "evaluation",
    "reward_model": "reward_model/training.json",
    "retriever": "retriever/training.json",
}
"""What stays of a round, by the artifact's name."""


def start(
    *, demonstrations: Sequence[Artifact], evaluations: Sequence[Artifact], run: Artifact
) -> None:
    """Begin a run's folder with its baselines, whose names their artifacts carry."""
    with atomic_folder(Path(run.path)) as root:
        for chosen, judged in zip(demonstrations, evaluations, strict=True):
            name = judged.metadata["target"]
            if chosen.metadata["target"] != name:
                raise ConfigError(f"demonstrations of {chosen.metadata['target']} came for {name}.")
            folder = Layout(root).baseline(name)
            folder.mkdir(parents=True)
            shutil.copyfile(chosen.path, folder / "demonstrations.parquet")
            shutil.copytree(judged.path, folder / "evaluation")
        _write_costs(root, costs_of([demonstrations, evaluations]))


def promotion(
    *,
    settings: Mapping[str, Any],
    baselines: Sequence[Mapping[str, str]],
    number: int,
    data: Artifact,
    earlier: Artifact,
    made: Mapping[str, Artifact],
    run: Artifact,
    decision: Artifact,
    figures: Metrics,
) -> bool:
    """Run the step `promotion`; write the run's folder with the round in it and say the verdict.

    `made`: the round's artifacts by their names in the layout; `earlier`: the run's folder so far.
    """
    rounds = [*Layout(Path(earlier.path)).rounds(), number]
    params = params_of(settings, baselines, rounds)
    with _workspace(Path(earlier.path), data) as layout:
        folder = layout.round(number)
        folder.mkdir(parents=True, exist_ok=True)
        for name, artifact in made.items():
            place = name if name in ("index", "reward_model", "retriever") else _KEPT[name]
            (folder / place).symlink_to(Path(artifact.path).resolve())
        steps.promotion(params, layout=layout, number=number)
        result = read_json(folder / "promotion.json")
        with atomic_folder(Path(run.path)) as root:
            shutil.copytree(earlier.path, root, dirs_exist_ok=True)
            for place in (*_KEPT.values(), "promotion.json"):
                _copy(folder / place, Layout(root).round(number) / place)
            _write_costs(root, costs_of(made.values()))
    write_text(Path(decision.path), _markdown(number, result))
    run.metadata["target"] = f"r{number}"
    show(figures, {"round": number, "promoted": int(result["promoted"])})
    return bool(result["promoted"])


def report(
    *,
    settings: Mapping[str, Any],
    baselines: Sequence[Mapping[str, str]],
    data: Artifact,
    run: Artifact,
    page: Artifact,
    tables: Artifact,
    figures: Metrics,
) -> None:
    """Run the step `report` on the run's folder; `tables` gets metrics/ and plots/."""
    params = params_of(settings, baselines, list(Layout(Path(run.path)).rounds()))
    with _workspace(Path(run.path), data) as layout:
        counts = dict(steps.report(params, layout=layout))
        averages = read_json(layout.metrics / "rounds.json")
        shutil.copyfile(layout.report, page.path)
        with atomic_folder(Path(tables.path)) as folder:
            shutil.copytree(layout.metrics, folder / "metrics")
            shutil.copytree(layout.plots, folder / "plots")
    show(figures, counts | {f"average {name}": item["average"] for name, item in averages.items()})


@contextmanager
def _workspace(run: Path, data: Artifact) -> Iterator[Layout]:
    """Lay the run's folder and the data out as the steps expect them, by links."""
    require_address()
    with tempfile.TemporaryDirectory(prefix="exemplar-") as temporary:
        layout = Layout(Path(temporary))
        layout.data.symlink_to(Path(data.path).resolve())
        for folder in (layout.baseline("x").parent, layout.cost("x").parent):
            folder.symlink_to((run / folder.name).resolve())
        layout.round(1).parent.mkdir()
        for number, path in Layout(run).rounds().items():
            layout.round(number).symlink_to(path.resolve())
        yield layout


def _write_costs(root: Path, costs: Mapping[str, Mapping[str, Any]]) -> None:
    for cost in costs.values():
        write_json(Layout(root).cost(cost["step"], cost["target"]), cost)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)


def _markdown(number: int, result: Mapping[str, Any]) -> str:
    reasons = "\n".join(f"- {reason}" for reason in result["reasons"])
    return (
        f"# Round {number}: {result['headline']}\n\nVersion {result['version']}, against "
        f"{result['against']}.\n\n{reasons}\n"
    )
