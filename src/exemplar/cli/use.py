"""The rest of the command line: run everything, look at the outcome, use what was promoted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from exemplar.errors import ConfigError
from exemplar.layout import Workspace

use_app = typer.Typer()

ModelOption = Annotated[
    str, typer.Option("--model", help="models:/name@alias, or a folder of the served model.")
]
DEFAULT_MODEL = "models:/exemplar-retriever@champion"


@use_app.command("run")
def run(
    context: typer.Context,
    profile: Annotated[str | None, typer.Option(help="demo, cpu or paper.")] = None,
    source: Annotated[str | None, typer.Option(help="sample, local, hub, s3 or released.")] = None,
    path: Annotated[
        str | None,
        typer.Option(help="Folder of local or released, s3://..., or a mirror of the hub."),
    ] = None,
    tasks: Annotated[str | None, typer.Option(help="Comma-separated tasks.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE, e.g. kd_training.num_updates=200.")
    ] = None,
    stages: Annotated[
        list[str] | None,
        typer.Option("--stage", help="Only this stage of dvc.yaml and what it needs."),
    ] = None,
) -> None:
    """Run every step that is out of date, by DVC, then print the summary.

    Options are written into params.yaml first, so that DVC sees and records them.

    Examples: exemplar run | exemplar run --profile cpu --stage evaluation@r1
    """
    from exemplar import runner

    space: Workspace = context.obj
    here = Path.cwd()
    if space.params_path.resolve() != here / "params.yaml" or space.layout.root.resolve() != here:
        raise ConfigError(
            "run drives dvc.yaml, which reads ./params.yaml and writes into this folder. Leave "
            "--params and --root away, or call the steps' own commands with them."
        )
    runner.set_params(
        space.params_path,
        profile=profile,
        source=source,
        data_path=path,
        tasks=tasks,
        settings=settings or [],
    )
    assert space.params  # a wrong setting is reported here, before DVC starts
    code = runner.repro(stages or ())
    if code:
        raise typer.Exit(code)
    if not stages:
        summary(context)


@use_app.command("summary")
def summary(context: typer.Context) -> None:
    """Print the table of all methods, and where everything is."""
    from exemplar.summary import print_summary

    space: Workspace = context.obj
    print_summary(space.params, space.layout)


@use_app.command("export")
def export(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder for the files.")],
) -> None:
    """Write data that came from the source `released` back as the authors' files.

    Example: exemplar export --out FOLDER
    """
    from exemplar.data.release.write import write_release

    for name, rows in write_release(context.obj.layout.data, out).items():
        typer.echo(f"{out / name}.jsonl.gz: {rows:,} rows")


@use_app.command("select")
def select(
    context: typer.Context,
    query: Annotated[str, typer.Argument(help="The input to be answered.")],
    task: Annotated[str | None, typer.Option(help="Search this task's examples only.")] = None,
    k: Annotated[
        int | None,
        typer.Option("-k", min=1, help="How many; none: as many as in the model's evaluation."),
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    prompt: Annotated[bool, typer.Option("--prompt", help="Print the assembled prompt.")] = False,
) -> None:
    """Choose demonstrations for a query with the promoted retriever."""
    from exemplar.serving import Retriever
    from exemplar.tracking.store import open_store

    registered = model.startswith("models:/")
    store = open_store(context.obj.layout.root, create=False) if registered else None
    selection = Retriever.load(model, store=store).select(query, task=task, k=k)
    if prompt:
        typer.echo(selection.prompt(), nl=False)
        return
    for item in selection:
        typer.echo(f"{item.similarity:.3f}  [{item.example.task}]  {item.example.text!r}")
