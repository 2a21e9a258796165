"""Gathering what all steps left into the report page, the figures by round and a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from exemplar.config import Params
from exemplar.data.dataset import read_dataset
from exemplar.data.io import atomic_path, read_json, write_json, write_text
from exemplar.evaluation.data_card import describe
from exemplar.evaluation.report.page import ReportData, build_report, rounds_csv
from exemplar.layout import STEPS, Layout
from exemplar.records import Candidates, Outcome


def write_report(params: Params, layout: Layout) -> dict[str, Any]:
    """Write report.html, metrics/rounds.{json,csv} and plots/average.svg; return counts."""
    profile, dataset = params.active, read_dataset(layout.data)
    folders = {name: layout.baseline(name) for name in params.beside}
    folders |= {name: layout.round(item.number) for name, item in params.rounds.items()}
    metrics = {name: read_json(path / "evaluation/metrics.json") for name, path in folders.items()}
    rounds = {name: layout.round(item.number) for name, item in params.rounds.items()}
    demonstrations = {
        name: dataset.read(path / "demonstrations.parquet", Candidates)
        for name, path in folders.items()
    }
    shown = dataset.pool_examples(*demonstrations.values())
    page = build_report(
        ReportData(
            methods=list(folders),
            metrics=metrics,
            title=profile.report.title,
            about={
                "language model": profile.lm.ref,
                "retriever starts from": profile.kd_training.init,
                "reward model starts from": profile.reward_training.init,
                "demonstrations a prompt": str(profile.search.num_shots),
            },
            categories={task: dataset.specs[task].category for task in dataset.tasks},
            outcomes={
                name: dataset.read(path / "evaluation/outcomes.parquet", Outcome)
                for name, path in folders.items()
            },
            demonstrations=demonstrations,
            test=dataset.test,
            pool=list(shown.values()),
            cards=describe(
                dataset.pool,
                dataset.train,
                dataset.test,
                {task: dataset.specs[task].labels for task in dataset.tasks},
            ),
            histories={name: _histories(path) for name, path in rounds.items()},
            costs=_costs(layout, list(folders)),
            decisions={name: read_json(path / "promotion.json") for name, path in rounds.items()},
            margin=profile.promotion.margin,
            seed=profile.seed,
        )
    )
    write_text(layout.report, page)
    write_text(layout.metrics / "rounds.csv", rounds_csv(list(folders), metrics))
    write_json(
        layout.metrics / "rounds.json",
        {name: {"average": entry["average"]["value"]} for name, entry in metrics.items()},
    )
    _plot(layout.plots / "average.svg", metrics)
    return {"methods": len(folders), "kilobytes": len(page) // 1024}


def _histories(folder: Path) -> dict[str, list[dict[str, float]]]:
    return {
        "reward_training": read_json(folder / "reward_model/training.json")["history"],
        "kd_training": read_json(folder / "retriever/training.json")["history"],
    }


def _costs(layout: Layout, methods: Sequence[str]) -> list[dict[str, Any]]:
    """Return what every step cost, in the order in which a run takes them, shares one by one."""
    targets = ["", *methods]

    def place(row: Mapping[str, Any]) -> tuple[int, int, str]:
        target = row["target"].partition("-shard-")[0]
        known = targets.index(target) if target in targets else len(targets)
        return known, STEPS.index(row["step"]), row["target"]

    return sorted(map(read_json, layout.cost("x").parent.rglob("*.json")), key=place)


def _plot(path: Path, metrics: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw every method's average with its 95 % interval, for `dvc plots` and the MLflow UI."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    averages = [entry["average"] for entry in metrics.values()]
    values = [item["value"] for item in averages]
    spread = [
        [item["value"] - item["low"] for item in averages],
        [item["high"] - item["value"] for item in averages],
    ]
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.barh(list(metrics), values, xerr=spread, color="#3b6ea5", ecolor="#555555", capsize=3)
    axes.invert_yaxis()
    axes.set_xlabel("average over tasks, 0 to 100, with 95 % interval")
    axes.spines[["top", "right"]].set_visible(False)
    # Without a salt of their own, the ids inside an SVG differ from run to run.
    with atomic_path(path) as temporary, rc_context({"svg.hashsalt": "exemplar"}):
        figure.savefig(temporary, format="svg", metadata={"Date": None})
