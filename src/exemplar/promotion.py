"""From an evaluated round to the registry: log it, register its retriever, let the gate decide.

Everything here reads what earlier steps wrote. Runs and versions are found again by the fingerprint
of what they hold, so a repeated promotion adds nothing, and one that was killed is finished.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from exemplar import run_facts
from exemplar.config import Params, Profile
from exemplar.data.dataset import Dataset, read_dataset
from exemplar.data.io import fingerprint, read_json, read_records
from exemplar.evaluation.gate import decide
from exemplar.layout import Layout
from exemplar.records import Example, Outcome
from exemplar.registry import aliases, story, versions
from exemplar.registry.bundle import SearchSettings
from exemplar.retrieval.demonstrations import Rules
from exemplar.settings import Baseline, Trained
from exemplar.tracking import runs
from exemplar.tracking.store import Store, open_store


def promote_round(params: Params, layout: Layout, number: int) -> dict[str, Any]:
    """Do all of it for one round, and return the content of promotion.json."""
    profile, dataset = params.active, read_dataset(layout.data)
    settings, folder = profile.promotion, layout.round(number)
    evaluations = {
        name: (params.trained.get(name, item), layout.baseline(name) / "evaluation")
        for name, item in params.beside.items()
    }
    for _, evaluation in [*evaluations.values(), ("", folder / "evaluation")]:
        _require_same_data(evaluation, dataset)  # before anything is logged
    index = folder / "index" / "pool.parquet"
    dataset.read(index, Example, retriever=folder / "retriever")
    store = open_store(layout.root, settings.experiment)
    log_baselines(store, dataset, profile, evaluations, data=layout.data)
    run_id = log_round(store, dataset, profile, folder, data=layout.data, number=number)
    return register_and_decide(
        store,
        profile,
        folder,
        data=layout.data,
        number=number,
        run_id=run_id,
        baseline=layout.baseline(settings.baseline) / "evaluation",
        labelled_tasks=dataset.classification_tasks,
    )


def attach(params: Params, layout: Layout, files: Sequence[Path]) -> None:
    """Keep files, such as the report, with the run of every round."""
    store = open_store(layout.root, params.active.promotion.experiment)
    for item in params.rounds.values():
        run_id = read_json(layout.round(item.number) / "promotion.json")["run_id"]
        runs.add_artifacts(store, run_id, files)


def log_baselines(
    store: Store,
    dataset: Dataset,
    profile: Profile,
    baselines: Mapping[str, tuple[Baseline | Trained, Path]],
    *,
    data: Path,
) -> None:
    """Log one run a baseline; `baselines` gives settings and evaluation folder by name."""
    training = run_facts.flat("kd_training.", profile.kd_training.model_dump())
    for place, (name, (settings, folder)) in enumerate(baselines.items()):
        trained = training if isinstance(settings, Trained) else {}
        runs.log_run(
            store,
            name=f"baseline-{name}",
            kind="baseline",
            round=None,
            params={
                **run_facts.flat("", settings.model_dump()),
                **trained,
                **run_facts.shared_params(profile),
            },
            metrics=run_facts.figures(read_json(folder / "metrics.json")),
            datasets=run_facts.datasets(dataset, data),
            tags=run_facts.origin(dataset) | run_facts.colour(run_facts.BASELINES, place),
            artifacts=[
                folder / "metrics.json",
                folder / "outcomes.parquet",
                folder / "examples.md",
            ],
        )


def log_round(
    store: Store,
    dataset: Dataset,
    profile: Profile,
    folder: Path,
    *,
    data: Path,
    number: int,
) -> str:
    """Log the run of a round, with its training curves, and return the run's id."""
    trainings = {
        step: read_json(folder / model / "training.json")
        for step, model in (("reward_training", "reward_model"), ("kd_training", "retriever"))
    }
    metrics = run_facts.figures(read_json(folder / "evaluation" / "metrics.json"))
    params = {"round": number, **run_facts.shared_params(profile)}
    for step, training in trainings.items():
        params |= run_facts.flat(f"{step}.", getattr(profile, step).model_dump())
        metrics |= {
            f"{step}/{key}": value
            for key, value in training["summary"].items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
    evaluation = folder / "evaluation"
    return runs.log_run(
        store,
        name=f"round-{number}",
        kind="round",
        round=number,
        params=params,
        metrics=metrics,
        curves={
            name: points
            for step in trainings
            for name, points in run_facts.curves(step, trainings[step]["history"])
        },
        datasets=run_facts.datasets(dataset, data),
        tags=run_facts.origin(dataset) | run_facts.colour(run_facts.ROUNDS, number - 1),
        artifacts=[
            evaluation / "metrics.json",
            evaluation / "outcomes.parquet",
            evaluation / "examples.md",
        ],
    )


def register_and_decide(
    store: Store,
    profile: Profile,
    folder: Path,
    *,
    data: Path,
    number: int,
    run_id: str,
    baseline: Path,
    labelled_tasks: Collection[str],
) -> dict[str, Any]:
    """Register the round's retriever, compare it with the champion, and move the aliases last.

    While there is no champion the opponent is the baseline evaluated in the folder `baseline`. A
    champion that was judged on another test set or pool cannot be compared: the challenger is
    refused, in words. The answers of `labelled_tasks` are labels. Returns the content of
    promotion.json.
    """
    settings = profile.promotion
    name, evaluation = settings.registered_model, folder / "evaluation"
    sealed = {
        "test": fingerprint(data / "test.parquet"),
        "pool": fingerprint(data / "pool.parquet"),
    }
    version = versions.register(
        store,
        name,
        run_id=run_id,
        round=number,
        retriever=folder / "retriever",
        pool=folder / "index",
        outcomes=evaluation / "outcomes.parquet",
        metrics=evaluation / "metrics.json",
        entry_script=Path(settings.entry_script),
        fingerprints=sealed,
        search=SearchSettings(
            profile.search.num_shots,
            profile.search.max_length,
            Rules(**profile.search.selection.model_dump()),
            tuple(sorted(labelled_tasks)),
        ),
        tags=run_facts.git_tags(),
    )
    report = _decide(store, profile, version, evaluation, sealed=sealed, baseline=baseline)
    return {"version": version, "run_id": run_id, **report}


def _decide(
    store: Store,
    profile: Profile,
    version: str,
    evaluation: Path,
    *,
    sealed: Mapping[str, str],
    baseline: Path,
) -> dict[str, Any]:
    """Compare a version with the champion of the moment until the answer holds; return the report.

    `sealed`: the fingerprints of what the version was judged on.
    """
    settings = profile.promotion
    name = settings.registered_model
    while True:
        champion = versions.champion(store, name)
        if champion is not None and champion.record.version == version:
            return _stored_decision(store, name, version)
        if champion is None:
            against, opponent = f"baseline {settings.baseline}", baseline / "outcomes.parquet"
            before = read_records(opponent, Outcome)
        else:
            against, before = f"champion, version {champion.record.version}", champion.outcomes
            judged = champion.record.fingerprints
            if differing := [key for key in sealed if judged.get(key) != sealed[key]]:
                return _refuse(store, name, version, champion.record.version, differing, against)
        decision = decide(
            before,
            read_records(evaluation / "outcomes.parquet", Outcome),
            margin=settings.margin,
            alpha=settings.alpha,
            seed=profile.seed,
            num_resamples=settings.num_resamples,
        )
        report: dict[str, Any] = {"against": against, **decision.to_dict()}
        story.store_gate_report(store, name, version, report, decision.markdown())
        compared = "" if champion is None else champion.record.version
        if not decision.promoted or aliases.promote(store, name, version, instead_of=compared):
            return report
        # Another process moved the champion meanwhile: the decision was about one that is gone.


def _stored_decision(store: Store, name: str, version: str) -> dict[str, Any]:
    """The version is champion already: repeat what the gate said when it became so."""
    stored = story.read_gate_report(store, name, version)
    headline = f"Version {version} is the champion already."
    given = {"promoted": True, "headline": headline, "reasons": [headline], "tasks": []}
    return stored or {"against": "itself", **given}


def _refuse(
    store: Store,
    name: str,
    version: str,
    champion: str,
    differing: Sequence[str],
    against: str,
) -> dict[str, Any]:
    reason = (
        f"The champion, version {champion}, was judged on another {' and '.join(differing)}: the "
        "two cannot be compared. Give promotion.registered_model a new name for this data, or "
        "evaluate the champion on it."
    )
    report = {
        "against": against,
        "promoted": False,
        "headline": f"Not promoted. {reason}",
        "reasons": [reason],
        "tasks": [],
    }
    story.store_gate_report(store, name, version, report, f"# Not promoted\n\n- {reason}\n")
    return report


def _require_same_data(evaluation: Path, dataset: Dataset) -> None:
    """Raise `DataError` where an evaluation is of other data than the run is logged with."""
    dataset.read(evaluation / "outcomes.parquet", Outcome)
