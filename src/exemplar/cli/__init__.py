"""The command line: options, exit codes and logging are here and nowhere else."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from exemplar.allocator import keep_freed_memory
from exemplar.cli.compare import compare_app
from exemplar.cli.pipeline import pipeline_app
from exemplar.cli.registry import registry_app
from exemplar.cli.serve import serve_app
from exemplar.cli.steps import steps_app
from exemplar.cli.tasks import tasks_app
from exemplar.cli.use import use_app
from exemplar.errors import ExemplarError
from exemplar.layout import Layout, Workspace

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Learn which few-shot examples a language model learns most from, and serve them.",
    epilog="Examples: exemplar run | exemplar summary | exemplar select 'Where is my parcel?' -k 4",
)


@app.callback()
def _open(
    context: typer.Context,
    params: Annotated[Path, typer.Option(help="The settings.")] = Path("params.yaml"),
    root: Annotated[Path, typer.Option(help="Folder of all outputs.")] = Path(),
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
) -> None:
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(name)s: %(message)s", stream=sys.stderr)
    for handler in logging.getLogger().handlers:
        handler.setLevel(level)  # some libraries set their own loggers to DEBUG on import
    for name in ("httpx", "httpx2"):  # a line for every request
        logging.getLogger(name).setLevel(logging.WARNING)
    context.obj = Workspace(params, Layout(root))


# Those without a name stand side by side, in this order.
app.add_typer(steps_app)
app.add_typer(compare_app)
app.add_typer(serve_app)
app.add_typer(pipeline_app, name="pipeline")
app.add_typer(tasks_app, name="tasks")
app.add_typer(registry_app)
app.add_typer(use_app)


def main(arguments: list[str] | None = None) -> None:
    """Entry point: a user's error is one message and exit code 2, never a traceback."""
    keep_freed_memory()
    try:
        app(arguments)
    except ExemplarError as error:
        typer.secho(f"error: {error}", err=True, fg="red")
        sys.exit(2)
