"""The rest of the command line: run everything, look at the outcome, use what was promoted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from exemplar.errors import ConfigError
from exemplar.layout import Workspace

use = typer.Typer()

ModelOption = Annotated[
    str, typer.Option("--model", help="models:/name@alias, or a folder of the served model.")
]
DEFAULT_MODEL = "models:/exemplar-retriever@champion"


@use.command("run")
def run(
    context: typer.Context,
    profile: Annotated[str | None, typer.Option(help="demo, cpu or paper.")] = None,
    source: Annotated[str | None, typer.Option(help="sample, local, hub or s3.")] = None,
    path: Annotated[
        str | None, typer.Option(help="Folder of source local, s3://..., or a mirror of the hub.")
    ] = None,
    tasks: Annotated[str | None, typer.Option(help="Comma-separated tasks.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE, e.g. kd_training.num_updates=200.")
    ] = None,
) -> None:
    """Run every step that is out of date, by DVC, then print the summary.

    Options are written into params.yaml first, so that DVC sees and records them.
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
    code = runner.repro()
    if code:
        raise typer.Exit(code)
    summary(context)


@use.command("summary")
def summary(context: typer.Context) -> None:
    """Print the table of all methods, and where everything is."""
    from exemplar.summary import print_summary

    space: Workspace = context.obj
    print_summary(space.params, space.layout)


@use.command("select")
def select(
    context: typer.Context,
    query: Annotated[str, typer.Argument(help="The input to be answered.")],
    task: Annotated[str | None, typer.Option(help="Search this task's examples only.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many demonstrations.")] = 4,
    model: ModelOption = DEFAULT_MODEL,
    prompt: Annotated[bool, typer.Option("--prompt", help="Print the assembled prompt.")] = False,
) -> None:
    """Choose demonstrations for a query with the promoted retriever."""
    from exemplar import tracking
    from exemplar.serving import Retriever

    registered = model.startswith("models:/")
    store = tracking.open_store(context.obj.layout.root, create=False) if registered else None
    selection = Retriever.load(model, store=store).select(query, task=task, k=k)
    if prompt:
        typer.echo(selection.prompt(), nl=False)
        return
    for item in selection:
        typer.echo(f"{item.similarity:.3f}  [{item.example.task}]  {item.example.text!r}")


@use.command("registry")
def registry(context: typer.Context) -> None:
    """List the registered versions, their aliases and gate results."""
    from exemplar.summary import print_registry

    space: Workspace = context.obj
    settings = space.params.active.promotion
    print_registry(settings.registered_model, space.layout, settings.experiment)


@use.command("rollback")
def rollback(context: typer.Context) -> None:
    """Make the previous champion champion again."""
    from exemplar import aliases, tracking

    space: Workspace = context.obj
    settings = space.params.active.promotion
    store = tracking.open_store(space.layout.root, settings.experiment, create=False)
    version = aliases.rollback(store, settings.registered_model)
    typer.echo(f"{settings.registered_model}: champion is version {version} again.")
