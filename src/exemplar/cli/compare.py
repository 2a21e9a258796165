"""Evaluation outside a run: one retriever on one's own data, and any two outcomes side by side."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from exemplar.errors import ConfigError
from exemplar.layout import Workspace

if TYPE_CHECKING:
    from exemplar.config import Profile
    from exemplar.evaluation.decision import Decision
    from exemplar.settings import Baseline

compare_app = typer.Typer()


@compare_app.command("evaluate")
def evaluate(
    context: typer.Context,
    retriever: Annotated[
        str,
        typer.Option(
            help="zero_shot, random, kmeans, bm25, a retriever's folder, an encoder's hub id, or "
            "models:/NAME@ALIAS."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for data, outcomes and metrics.")],
    lm: Annotated[
        str | None, typer.Option(help="The LM that answers; none: the profile's.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="The LM's: auto, float32 or bfloat16.")] = None,
    source: Annotated[str | None, typer.Option(help="sample, local, hub, s3 or released.")] = None,
    path: Annotated[
        str | None, typer.Option(help="Folder of source local or released, or s3://...")
    ] = None,
    tasks: Annotated[str | None, typer.Option(help="Comma-separated tasks.")] = None,
    shots: Annotated[int | None, typer.Option(min=0, help="Demonstrations a prompt.")] = None,
    max_test: Annotated[int | None, typer.Option(min=1, help="Test examples a task.")] = None,
    query_prefix: Annotated[str, typer.Option(help="Words before a query, for the encoder.")] = "",
    passage_prefix: Annotated[str, typer.Option(help="The same before a pool example.")] = "",
) -> None:
    """Evaluate a retriever on a source's test examples, with any LM, outside of rounds and MLflow.

    What no option says is taken from the active profile. `OUT/evaluation` holds the outcomes,
    which `exemplar compare` reads. The LM need not be the one that scored.

    Examples: exemplar evaluate --retriever bm25 --path FOLDER --tasks sst2,snli --out results/bm25
    | exemplar evaluate --retriever rounds/r1/retriever --lm FOLDER --dtype float32 --out results/r1
    """
    from exemplar import steps
    from exemplar.data.io import read_json
    from exemplar.summary import print_scores

    space: Workspace = context.obj
    profile = _profile(space.params.active, lm, dtype, source, path, tasks, shots, max_test)
    with tempfile.TemporaryDirectory(prefix="exemplar-") as temporary:
        method = _method(retriever, space, Path(temporary), query_prefix, passage_prefix)
        steps.download_data(profile, data=out / "data")
        demonstrations = out / "demonstrations.parquet"
        steps.search(profile, data=out / "data", method=method, out=demonstrations)
    folder = out / "evaluation"
    steps.evaluation(profile, data=out / "data", demonstrations=demonstrations, out=folder)
    print_scores({out.name: read_json(folder / "metrics.json")}, f"{retriever}, {profile.lm.ref}")
    typer.echo(f"outcomes: {folder}")


def _profile(
    profile: Profile,
    lm: str | None,
    dtype: str | None,
    source: str | None,
    path: str | None,
    tasks: str | None,
    shots: int | None,
    max_test: int | None,
) -> Profile:
    """Return the profile with the options of the command line in it, checked anew."""
    from pydantic import ValidationError

    from exemplar.config import Profile

    plain: dict[str, Any] = profile.model_dump()
    data, search = plain["download_data"], plain["search"]
    if path and not source:
        source = "s3" if path.startswith("s3://") else "local"
    if source:
        data |= {"source": source, "path": path, "tasks": None}
    if data["source"] == "released":  # its passages keep their places; nothing learns from scores
        data |= {"max_pool": None, "wording": 0, "scores": False}
    changes = {"max_test": max_test, "tasks": tasks and [name.strip() for name in tasks.split(",")]}
    data |= {key: value for key, value in changes.items() if value}
    data["max_train"] = 1  # nothing is trained
    plain["lm"] |= {key: value for key, value in {"ref": lm, "dtype": dtype}.items() if value}
    if shots is not None:
        search["num_shots"] = shots
    try:
        return Profile.model_validate(plain)
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"these options do not fit: {told}.") from None


def _method(
    retriever: str, space: Workspace, temporary: Path, query_prefix: str, passage_prefix: str
) -> Path | Baseline:
    """Return what the step `search` takes for a method's name or for a retriever's reference."""
    from typing import get_args

    from exemplar.retrieval.methods import Name
    from exemplar.settings import Baseline

    named = retriever in get_args(Name) and retriever != "dense"
    registered = retriever.startswith("models:/")
    if (query_prefix or passage_prefix) and (named or registered):
        raise ConfigError(
            f"--retriever {retriever} takes no prefix; an encoder, by folder or hub id, does."
        )
    if named:
        return Baseline(method=retriever)  # type: ignore[arg-type]
    if registered:
        from exemplar.registry import versions
        from exemplar.tracking.store import open_store

        store = open_store(space.layout.root, create=False)
        return versions.fetch(store, retriever, temporary) / "artifacts" / "bundle" / "encoder"
    return Baseline(
        method="dense",
        encoder=retriever,
        query_prefix=query_prefix,
        passage_prefix=passage_prefix,
    )


@compare_app.command("compare")
def compare(
    context: typer.Context,
    first: Annotated[str, typer.Argument(help="A round or baseline (r1, bm25), or a folder.")],
    second: Annotated[str, typer.Argument(help="What is compared with it.")],
    margin: Annotated[float, typer.Option(min=0, help="Points that a task may fall.")] = 0.0,
    alpha: Annotated[float, typer.Option(help="Level of intervals and tests.")] = 0.05,
) -> None:
    """Compare two evaluations of the same test examples, by the statistics of the promotion gate.

    Examples: exemplar compare bm25 r1 | exemplar compare results/bm25 results/mine
    """
    from exemplar.data.io import made_from, read_records
    from exemplar.errors import DataError
    from exemplar.evaluation.gate import decide
    from exemplar.records import Outcome
    from exemplar.summary import print_comparison

    space: Workspace = context.obj
    paths = [_outcomes(name, space) for name in (first, second)]
    data = [made_from(path).get("data") for path in paths]
    if data[0] != data[1]:
        raise DataError(
            f"{first} and {second} were evaluated on different data. A difference means something "
            "only on the same examples: evaluate both on one source with one seed."
        )
    outcomes = [read_records(path, Outcome) for path in paths]
    decision: Decision = decide(*outcomes, margin=margin, alpha=alpha)
    short = [Path(name).name for name in (first, second)]
    print_comparison(decision, *(short if short[0] != short[1] else (first, second)))


def _outcomes(name: str, space: Workspace) -> Path:
    """Return the outcomes of a round, a baseline, or a folder, wherever in it they lie."""
    folders = [Path(name)]
    if name in space.params.rounds:
        folders = [space.layout.round(space.params.rounds[name].number)]
    elif name in space.params.beside:
        folders = [space.layout.baseline(name)]
    for place in (folder / inner for folder in folders for inner in ("evaluation", "")):
        if (place / "outcomes.parquet").is_file():
            return place / "outcomes.parquet"
    known = ", ".join([*space.params.beside, *space.params.rounds])
    raise ConfigError(
        f"{name!r} has no outcomes: expected one of {known} after its evaluation, or a folder with "
        "outcomes.parquet, such as the --out of `exemplar evaluate`."
    )
