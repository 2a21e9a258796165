"""A command a step.

It opens params.yaml, calls the function of its name in `exemplar/steps.py`, writes what that cost
and prints one line.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from exemplar.errors import ConfigError
from exemplar.layout import Workspace

steps_app = typer.Typer()

RoundOption = Annotated[int, typer.Option("--round", min=1, help="The round, 1-based.")]
MaybeRound = Annotated[int | None, typer.Option("--round", min=1, help="The round, 1-based.")]
Processes = Annotated[
    int,
    typer.Option(
        "--processes",
        min=1,
        envvar="EXEMPLAR_PROCESSES",
        help="Train in so many processes on this machine, one a GPU; the batch stays the same.",
    ),
]
MaybeBaseline = Annotated[str | None, typer.Option("--baseline", help="A baseline's name.")]


def _run_step(context: typer.Context, step: str, target: str = "", **arguments: Any) -> None:
    """Call the step of this name, write its cost file and print one line of counts."""
    from exemplar import launch, steps
    from exemplar.data.io import write_json

    launch.refuse_copies(step)
    space: Workspace = context.obj
    profile = arguments.pop("profile", None) or space.params.active
    arguments.setdefault("data", space.layout.data)
    arguments.setdefault("processes", 1)
    start = time.perf_counter()
    figures = dict(launch.torchrun(getattr(steps, step), profile, **arguments))
    if launch.rank():  # of processes that did one work together, the first reports it
        return
    figures["seconds"] = round(time.perf_counter() - start, 2)
    write_json(space.layout.cost(step, target), {"step": step, "target": target, **figures})
    counts = ", ".join(f"{name} {_short(value)}" for name, value in figures.items())
    typer.echo(f"{step}{' ' + target if target else ''}: {counts}")


def _short(value: object) -> str:
    return (
        f"{value:,.4g}"
        if isinstance(value, float)
        else f"{value:,}"
        if isinstance(value, int)
        else str(value)
    )


def _target(space: Workspace, number: int | None, baseline: str | None) -> Path:
    """Return the folder of a round or of a baseline; exactly one must be given."""
    if number is not None and baseline is None:
        return space.layout.round(number)
    if number is not None or baseline is None:
        raise ConfigError("Give either --round N or --baseline NAME, one of the two.")
    if baseline not in space.params.beside:
        known = ", ".join(space.params.beside)
        raise ConfigError(f"--baseline {baseline!r} is not in params.yaml; known: {known}.")
    return space.layout.baseline(baseline)


@steps_app.command("download-data")
def download_data(context: typer.Context) -> None:
    """Fetch examples, check them, and write data/ with its manifest."""
    _run_step(context, "download_data")


@steps_app.command("bm25-candidates")
def bm25_candidates(context: typer.Context) -> None:
    """Propose round 1's candidates by BM25."""
    out = context.obj.layout.round(1) / "candidates.parquet"
    _run_step(context, "bm25_candidates", out=out)


@steps_app.command("llm-scoring")
def llm_scoring(
    context: typer.Context,
    number: RoundOption,
    shard: Annotated[
        str | None, typer.Option(help="Score only this share of the parts, for example 2/4.")
    ] = None,
) -> None:
    """Score candidates by how likely they make the right answer to the LM.

    Killed, it goes on from its last whole part. Several processes on one folder share the work by
    --shard 1/4, 2/4, ...; when all are done, a call without --shard puts their parts together.
    """
    from exemplar.data.shares import Shard

    folder = context.obj.layout.round(number)
    _run_step(
        context,
        "llm_scoring",
        folder.name + (f"-shard-{shard.replace('/', '-of-')}" if shard else ""),
        candidates=folder / "candidates.parquet",
        out=folder / "llm_scores.parquet",
        number=number,
        shard=Shard.parse(shard) if shard else None,
    )


@steps_app.command("reward-training")
def reward_training(context: typer.Context, number: RoundOption, processes: Processes = 1) -> None:
    """Train the reward model on the LM's scores; stop if it does not learn to rank.

    On several GPUs: --processes 4, or torchrun --nproc-per-node 4 -m exemplar reward-training ...
    """
    folder = context.obj.layout.round(number)
    _run_step(
        context,
        "reward_training",
        folder.name,
        llm_scores=folder / "llm_scores.parquet",
        out=folder / "reward_model",
        number=number,
        processes=processes,
    )


@steps_app.command("reward-scoring")
def reward_scoring(context: typer.Context, number: RoundOption) -> None:
    """Give every candidate a reward."""
    folder = context.obj.layout.round(number)
    _run_step(
        context,
        "reward_scoring",
        folder.name,
        candidates=folder / "candidates.parquet",
        reward_model=folder / "reward_model",
        out=folder / "rewards.parquet",
    )


@steps_app.command("kd-training")
def kd_training(
    context: typer.Context,
    number: MaybeRound = None,
    baseline: MaybeBaseline = None,
    processes: Processes = 1,
) -> None:
    """Distil the rewards of all rounds so far into a retriever, or train a baseline's.

    On several GPUs: --processes 4, or torchrun --nproc-per-node 4 -m exemplar kd-training ...
    """
    space: Workspace = context.obj
    folder = _target(space, number, baseline)
    paths: dict[str, Any] = {"out": folder / "retriever", "number": number or 1}
    if number is None:
        paths |= _teacher(space, folder.name)
    else:
        earlier = [space.layout.round(n) for n in range(1, number + 1)]
        paths["rewards"] = [item / "rewards.parquet" for item in earlier]
        paths["llm_scores"] = folder / "llm_scores.parquet"
    _run_step(context, "kd_training", folder.name, processes=processes, **paths)


def _teacher(space: Workspace, name: str) -> dict[str, Any]:
    """Return the files that a trained baseline learns from."""
    if name not in space.params.trained:
        known = ", ".join(space.params.trained) or "none"
        raise ConfigError(
            f"--baseline {name!r} has nothing to train; under `trained` in params.yaml: {known}."
        )
    settings = space.params.trained[name]
    path = space.layout.root / settings.path
    if settings.teacher == "llm_scores":
        return {"rewards": (), "llm_scores": path}
    files = sorted(path.glob("r*/rewards.parquet")) if path.is_dir() else [path]
    if not files:
        raise ConfigError(
            f"trained.{name}.path: {path} holds no rewards: expected r1/rewards.parquet, ..., as "
            "download_data writes them from a release with kd files."
        )
    return {"rewards": files, "llm_scores": None}


@steps_app.command("search")
def search(
    context: typer.Context, number: MaybeRound = None, baseline: MaybeBaseline = None
) -> None:
    """Choose demonstrations for the test queries, and the next round's candidates."""
    space: Workspace = context.obj
    folder = _target(space, number, baseline)
    paths: dict[str, Any] = {"out": folder / "demonstrations.parquet"}
    if number is None:
        trained = folder.name in space.params.trained
        paths["method"] = folder / "retriever" if trained else space.params.baselines[folder.name]
    else:
        paths["method"] = folder / "retriever"
        paths["index"] = folder / "index"
        paths["next_candidates"] = space.layout.round(number + 1) / "candidates.parquet"
    _run_step(context, "search", folder.name, **paths)


@steps_app.command("evaluation")
def evaluation(
    context: typer.Context, number: MaybeRound = None, baseline: MaybeBaseline = None
) -> None:
    """Let the LM answer the test queries with the chosen demonstrations."""
    folder = _target(context.obj, number, baseline)
    _run_step(
        context,
        "evaluation",
        folder.name,
        demonstrations=folder / "demonstrations.parquet",
        out=folder / "evaluation",
    )


@steps_app.command("promotion")
def promotion(context: typer.Context, number: RoundOption) -> None:
    """Log the round to MLflow, register its retriever, and run the gate."""
    from exemplar import steps

    space: Workspace = context.obj
    result = steps.promotion(space.params, layout=space.layout, number=number)
    typer.echo(f"round {number}, version {result['version']}, against {result['against']}:")
    typer.echo(f"  {result['headline']}")


@steps_app.command("report")
def report(context: typer.Context) -> None:
    """Write report.html, metrics and plots from all evaluations."""
    from exemplar import steps

    space: Workspace = context.obj
    figures = steps.report(space.params, layout=space.layout)
    typer.echo(f"{space.layout.report}: {figures['methods']} methods, {figures['kilobytes']} KiB")
