"""What a run is logged with, from settings and files: names that all rounds and baselines share."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from exemplar.config import Profile
from exemplar.data.dataset import Dataset
from exemplar.tracking import runs

# Runs in MLflow's charts; by itself it gives several runs one colour.
ROUNDS = ("#0c6b66", "#3f9c8f", "#17784a", "#2f6f9f", "#5b4b9a")
BASELINES = ("#c2c7cc", "#9aa1a9", "#6f7a85", "#b66a10", "#d9a860", "#8a6a4a", "#a34f3f")


def origin(dataset: Dataset) -> dict[str, str]:
    """Return the tags that say what code and what data a run comes from."""
    return {"exemplar.data": dataset.fingerprint, **git_tags()}


def colour(colours: Sequence[str], place: int) -> dict[str, str]:
    """Return the tag that gives a run the colour of its place."""
    return {"mlflow.runColor": colours[place % len(colours)]}


def git_tags() -> dict[str, str]:
    """Return the commit that is checked out, where there is one."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"mlflow.source.git.commit": found.stdout.strip()}


def shared_params(profile: Profile) -> dict[str, object]:
    """Return the settings that every run of a profile shares."""
    return {
        "seed": profile.seed,
        **flat("lm.", profile.lm.model_dump()),
        **flat("search.", profile.search.model_dump()),
        **flat("llm_scoring.", profile.llm_scoring.model_dump()),
    }


def flat(prefix: str, values: Mapping[str, Any]) -> dict[str, object]:
    """Return a section's settings under a prefix, those that are set."""
    return {f"{prefix}{key}": value for key, value in values.items() if value is not None}


def figures(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Flatten metrics.json to the names that every run shares: eval/average, eval/<task>, ..."""
    named = {"average": metrics["average"], **metrics["categories"], **metrics["tasks"]}
    figures = {}
    for name, item in named.items():
        figures[f"eval/{name}"] = item["value"]
        figures[f"eval_low/{name}"] = item["low"]
        figures[f"eval_high/{name}"] = item["high"]
    agreement = metrics["label_agreement"]
    figures |= {f"label_agreement/{task}": share for task, share in agreement.items()}
    if agreement:
        figures["label_agreement/average"] = sum(agreement.values()) / len(agreement)
    return figures


def curves(
    step: str, history: Sequence[Mapping[str, float]]
) -> list[tuple[str, list[tuple[int, float]]]]:
    """Turn history rows into one series a figure, by update."""
    series: dict[str, list[tuple[int, float]]] = {}
    for row in history:
        for key, value in row.items():
            if key != "update":
                series.setdefault(f"{step}_curve/{key}", []).append((int(row["update"]), value))
    return list(series.items())


def datasets(dataset: Dataset, data: Path) -> list[runs.Dataset]:
    """Return the three files of a data folder with what each served for."""
    digests = dataset.manifest["sha256"]
    contexts = {"pool": "retrieval", "train": "training", "test": "evaluation"}
    return [
        runs.Dataset(name, data.resolve() / f"{name}.parquet", digests[name], context)
        for name, context in contexts.items()
    ]
