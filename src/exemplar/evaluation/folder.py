"""The folder of an evaluation: frozen outcomes, what they amount to, and examples to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from exemplar.data.dataset import Dataset
from exemplar.data.io import atomic_folder, write_json, write_records, write_text
from exemplar.evaluation.digest import examples_markdown, label_agreement, summarise
from exemplar.records import Example, Outcome


def write_evaluation(
    out: Path,
    dataset: Dataset,
    chosen: Mapping[str, Sequence[Example]],
    outcomes: Sequence[Outcome],
    *,
    lm: Mapping[str, str],
    made_from: Mapping[str, str],
    seed: int,
    num_resamples: int,
) -> dict[str, Any]:
    """Write outcomes.parquet, metrics.json and examples.md, and return the metrics.

    `chosen` maps the test queries' ids to their demonstrations, the last in the prompt first; `lm`
    says which one answered.
    """
    metrics = summarise(
        outcomes, dataset.specs, dataset.test_by_id, seed=seed, num_resamples=num_resamples
    )
    metrics["lm"] = dict(lm)
    shown = {example.example_id: example for item in chosen.values() for example in item}
    metrics["label_agreement"] = label_agreement(dataset.test, chosen, dataset.specs)
    with atomic_folder(out) as folder:
        write_records(folder / "outcomes.parquet", Outcome, outcomes, made_from=made_from)
        write_json(folder / "metrics.json", metrics)
        write_text(
            folder / "examples.md",
            examples_markdown(outcomes, dataset.test_by_id, shown),
        )
    return metrics
