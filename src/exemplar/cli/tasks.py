"""`exemplar tasks`: which tasks there are, and what an example of one looks like to the LM."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from exemplar.data.sources import Source
    from exemplar.tasks.spec import TaskSpec

tasks_app = typer.Typer(
    help="The tasks: list them, or show examples of one.",
    epilog="Examples: exemplar tasks | exemplar tasks show support_desk | "
    "exemplar tasks show sst2 --path FOLDER --wording 1",
)

PathOption = Annotated[
    Path | None, typer.Option(help="A local source, one folder a task; also reads its tasks.yaml.")
]


@tasks_app.callback(invoke_without_command=True)
def table(context: typer.Context, path: PathOption = None) -> None:
    """List the tasks of the catalogue, and those of your own that a folder brings along."""
    if context.invoked_subcommand is None:
        from exemplar.data import sources
        from exemplar.tasks.spec import load_catalog

        _print_table(load_catalog(sources.own_tasks("local", path)).values())


@tasks_app.command("show")
def show(
    task: Annotated[str, typer.Argument(help="The task's name.")],
    path: PathOption = None,
    count: Annotated[int, typer.Option("-n", min=1, help="How many examples.")] = 3,
    wording: Annotated[int, typer.Option(min=0, help="Which prompt template, from 0.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw.")] = 0,
) -> None:
    """Print examples of a task as the LM reads them.

    They come from the sample set if the task is part of it, from --path if that is given, else
    from the Hugging Face hub.
    """
    from exemplar.data import sources
    from exemplar.tasks import sample
    from exemplar.tasks.spec import load_catalog, select

    source: Source = "sample" if task in sample.specs() else "local" if path else "hub"
    catalog = load_catalog(sources.own_tasks(source, path))
    (spec,) = (chosen.worded(wording) for chosen in select(catalog, [task]))
    splits = sources.load(source, path=path, specs=[spec], seed=seed, max_pool=count, max_test=1)
    for example in splits.pool:
        typer.secho(f"{example.example_id}", dim=True)
        typer.echo(example.query)
        for choice in example.choices:
            typer.echo(f"  {'*' if choice == example.answer else '-'} {choice}")
        if not example.choices:
            typer.secho(" | ".join(example.answers), bold=True)
        typer.echo()
    told = f"one of {', '.join(spec.labels)}" if spec.labels else spec.kind.replace("_", " ")
    typer.echo(f"{spec.name} ({spec.category}, {spec.metric}): {spec.description}")
    typer.echo(f"answer: {told}; {max(1, len(spec.wordings))} wordings, this is {wording}")


def _print_table(specs: Iterable[TaskSpec]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("task", "category", "kind", "metric", "", "rows"):
        table.add_column(column, no_wrap=True)
    for spec in specs:
        rows = spec.hub.get("id", "own" if spec.from_rows else "sample set")
        held_out = "held out" if spec.held_out else ""
        table.add_row(
            spec.name, spec.category, spec.kind.replace("_", " "), spec.metric, held_out, rows
        )
    console = Console()
    console.width = max(console.width, 110)
    console.print(table)
