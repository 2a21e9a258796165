"""One function a step, under the name that CLI, DVC, KFP and params.yaml use too.

A step reads files, calls the concept folders, and writes files; it returns counts worth a line on
the terminal. Settings stop here: below, there are plain values. Each file that a step reads was
sealed with the fingerprints of what it was made from, and a mismatch is an error. The three steps
whose work several processes can share out are in `steps_scoring.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from exemplar.config import Params, Profile
from exemplar.data.dataset import read_dataset
from exemplar.data.io import atomic_folder, fingerprint, write_json, write_records
from exemplar.layout import Layout
from exemplar.models import cache_folder
from exemplar.records import Candidates, LlmScores, Rewards
from exemplar.settings import Baseline
from exemplar.steps_scoring import Figures, beside, evaluation, llm_scoring, reward_scoring

__all__ = [
    "bm25_candidates",
    "download_data",
    "evaluation",
    "kd_training",
    "llm_scoring",
    "promotion",
    "report",
    "reward_scoring",
    "reward_training",
    "search",
]


def download_data(profile: Profile, *, data: Path) -> Figures:
    """Read examples from the source, check and split them, and seal them in a data folder."""
    from exemplar.data import download

    settings = profile.download_data.model_dump(mode="json")
    return download.fill(data, settings, seed=profile.seed, cache=cache_folder())


def bm25_candidates(profile: Profile, *, data: Path, out: Path) -> Figures:
    """Propose the first round's candidates for every training query."""
    from exemplar.retrieval import bm25

    dataset, settings = read_dataset(data), profile.bm25_candidates
    candidates = bm25.bm25_candidates(
        dataset.train,
        dataset.pool,
        k=settings.num_candidates,
        **settings.model_dump(exclude={"num_candidates"}),
        progress="BM25",
    )
    write_records(out, Candidates, candidates, made_from={"data": dataset.fingerprint})
    return {"queries": len(candidates)}


def reward_training(
    profile: Profile,
    *,
    data: Path,
    llm_scores: Path,
    out: Path,
    number: int,
    work: Path | None = None,
) -> Figures:
    """Train the reward model; raise `TrainingError` if it ranks held-out candidates too poorly."""
    from exemplar import launch
    from exemplar.training import reward

    dataset, settings = read_dataset(data), profile.reward_training
    scores = dataset.read(llm_scores, LlmScores)
    with (  # a model that may not teach is never put in place, and one rank puts it there
        launch.join() as ranks,
        atomic_folder(out) if ranks.is_first else nullcontext(out) as folder,
    ):
        report = reward.train_reward_model(
            settings.init,
            dataset.pool_examples(scores),
            scores,
            folder,
            seed=profile.seed,
            round=number,
            progress=f"reward model, round {number}",
            **settings.model_dump(exclude={"init", "min_accuracy", "clip_norm"}),
            clip=settings.clip_norm,
            checkpoint=work or beside(out, "checkpoint"),
            ranks=ranks,
        )
        reward.require_teacher(report.summary, settings.min_accuracy)
    return report.headline(reward.RANKING_ACCURACY, "spearman")


def kd_training(
    profile: Profile,
    *,
    data: Path,
    rewards: Sequence[Path],
    llm_scores: Path | None,
    out: Path,
    number: int,
    work: Path | None = None,
) -> Figures:
    """Distil the rewards of all rounds so far into a retriever.

    `llm_scores` are there to compare with, if at all; without rewards they are the teacher (EPR).
    """
    from exemplar import launch
    from exemplar.training import distill

    dataset, settings = read_dataset(data), profile.kd_training
    scores = dataset.of_training(dataset.read(llm_scores, LlmScores)) if llm_scores else []
    taught = [dataset.of_training(dataset.read(path, Rewards)) for path in rewards]
    with launch.join() as ranks:
        report = distill.train_retriever(
            settings.init,
            dataset.pool_examples(scores, *taught),
            taught or [scores],
            out,
            llm_scores=scores,
            classification_tasks=dataset.classification_tasks,
            seed=profile.seed,
            round=number,
            progress=f"retriever, {out.parent.name}",
            **settings.model_dump(exclude={"init", "clip_norm"}),
            clip=settings.clip_norm,
            checkpoint=work or beside(out, "checkpoint"),
            ranks=ranks,
        )
    return report.headline("group_accuracy", "llm_spearman", "label_agreement_at_3")


def search(
    profile: Profile,
    *,
    data: Path,
    method: Path | Baseline,
    out: Path,
    next_candidates: Path | None = None,
    index: Path | None = None,
) -> Figures:
    """Choose demonstrations for the test queries by a retriever's folder or by a baseline.

    With `next_candidates` the retriever also proposes the next round's candidates there; with
    `index` the embedded pool is kept there, for serving.
    """
    from exemplar.retrieval.demonstrations import Rules
    from exemplar.retrieval.methods import Method, Request, propose, recalls

    dataset, settings = read_dataset(data), profile.search
    sealed = {"data": dataset.fingerprint}
    if isinstance(method, Path):
        sealed["retriever"] = fingerprint(method)
        method = Baseline(method="dense", encoder=str(method))
    rules = Rules(**settings.selection.model_dump())
    requests = {out: Request(dataset.searching(dataset.test), settings.num_shots, rules)}
    if next_candidates:
        queries = dataset.searching(dataset.train)
        requests[next_candidates] = Request(queries, settings.num_candidates)
    found = propose(
        Method(
            name=method.method,
            encoder=method.encoder or profile.kd_training.init,
            query_prefix=method.query_prefix,
            passage_prefix=method.passage_prefix,
            seed=profile.seed,
            bm25_options=profile.bm25_candidates.model_dump(exclude={"num_candidates", "scope"}),
            **settings.model_dump(exclude={"num_shots", "num_candidates", "selection"}),
        ),
        list(requests.values()),
        dataset.pool,
        labelled_tasks=dataset.classification_tasks,
        index_folder=index,
        made_from=sealed,
        progress=f"search, {out.parent.name}",
    )
    for path, candidates in zip(requests, found, strict=True):
        write_records(path, Candidates, candidates, made_from=sealed)
    counts = {path.stem: len(request.queries) for path, request in requests.items()}
    return counts | recalls(found)


def promotion(params: Params, *, layout: Layout, number: int) -> Figures:
    """Log the round and the baselines to MLflow, register the retriever, and run the gate."""
    from exemplar.promotion import promote_round

    result = promote_round(params, layout, number)
    write_json(layout.round(number) / "promotion.json", result)
    return {key: result[key] for key in ("version", "against", "promoted", "headline")}


def report(params: Params, *, layout: Layout) -> Figures:
    """Write report.html, figures and plots from all evaluations; keep the page with each run."""
    from exemplar.promotion import attach
    from exemplar.reporting import write_report

    figures = write_report(params, layout)
    attach(params, layout, [layout.report, layout.plots / "average.svg"])
    return figures
