"""What the terminal shows at the end: the table of all methods, the gate's words, where to look."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exemplar.data.io import read_json
from exemplar.errors import DataError, RegistryError
from exemplar.layout import Layout

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from exemplar.config import Params
    from exemplar.evaluation.decision import Decision
    from exemplar.tracking.store import Store


def methods(params: Params, layout: Layout) -> dict[str, Path]:
    """Return the evaluation folder of every method: the baselines, then the rounds."""
    folders = {name: layout.baseline(name) / "evaluation" for name in params.beside}
    folders |= {
        name: layout.round(item.number) / "evaluation" for name, item in params.rounds.items()
    }
    return folders


def print_summary(params: Params, layout: Layout) -> None:
    """Print the results (`print_results`) and the way on."""
    console = print_results(params, layout)
    _print_places(console, params, layout)


def print_results(params: Params, layout: Layout) -> Console:
    """Print every method's average and tasks with 95 % intervals, and the gate's words."""
    figures = {
        name: read_json(folder / "metrics.json")
        for name, folder in methods(params, layout).items()
        if (folder / "metrics.json").exists()
    }
    if not figures:
        raise DataError(
            f"There is no evaluation below {layout.root.resolve().name}/ yet. Run `exemplar run`."
        )
    console = print_scores(figures, params.active.report.title)
    for name in params.rounds:
        path = layout.round(params.rounds[name].number) / "promotion.json"
        if path.exists():
            decision = read_json(path)
            colour = "green" if decision["promoted"] else "yellow"
            console.print(f"[bold {colour}]{name}[/] {decision['headline']}", highlight=False)
    return console


def print_scores(figures: Mapping[str, Mapping[str, Any]], title: str) -> Console:
    """Print the table of metrics.json contents by name, and return what it was printed on."""
    from rich.console import Console

    console = Console(width=max(80, Console().width))
    console.print(_table(figures, title))
    return console


def print_comparison(decision: Decision, first: str, second: str) -> None:
    """Print how the second differs from the first, in words and task by task."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    interval = f"{100 * (1 - decision.alpha):g} % interval"
    for name in ("task", "examples", first, second, "difference", interval, "p (Holm)", "verdict"):
        table.add_column(name, justify="left" if name in ("task", "verdict") else "right")
    for change in decision.tasks:
        table.add_row(
            change.task,
            f"{change.num_examples:,}",
            f"{change.champion:.1f}",
            f"{change.challenger:.1f}",
            f"{change.difference:+.1f}",
            f"{change.interval.low:+.1f} to {change.interval.high:+.1f}",
            "" if change.p_holm is None else f"{change.p_holm:.2g}",
            {"blocked": "fell", "fell": "fell, within the margin"}.get(
                change.verdict, change.verdict
            ),
        )
    console = Console(width=max(100, Console().width))
    console.print(f"From {first} to {second}. {' '.join(decision.reasons)}\n", highlight=False)
    console.print(table)


def _table(figures: Mapping[str, Mapping[str, Any]], title: str) -> Table:
    from rich.table import Table

    caption = "Scores from 0 to 100; below each its 95 % interval. Green: the best of its row."
    table = Table(title=title, caption=caption, box=None, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for name in figures:
        table.add_column(name, justify="right", no_wrap=True)
    first = next(iter(figures.values()))
    best = max(entry["average"]["value"] for entry in figures.values())
    averages = [entry["average"] for entry in figures.values()]
    table.add_row(
        "[bold]average[/]", *[_cell(item, best=item["value"] == best) for item in averages]
    )
    table.add_section()
    for task in first["tasks"]:
        items = [entry["tasks"][task] for entry in figures.values()]
        top = max(item["value"] for item in items)
        table.add_row(task, *[_cell(item, best=item["value"] == top) for item in items])
    return table


def _cell(item: Mapping[str, float], *, best: bool) -> str:
    value = f"[bold green]{item['value']:.1f}[/]" if best else f"{item['value']:.1f}"
    return f"{value}\n[dim]{item['low']:.0f}-{item['high']:.0f}[/]"


def _print_places(console: Any, params: Params, layout: Layout) -> None:
    settings = params.active.promotion
    decisions = [layout.round(item.number) / "promotion.json" for item in params.rounds.values()]
    found = [read_json(path) for path in decisions if path.exists()]
    # Promoted now, or compared with a champion: either way there is one.
    alias = "champion" if any(d["promoted"] or "champion" in d["against"] for d in found) else ""
    model = f"models:/{settings.registered_model}@{alias or 'challenger'}"
    rows = [
        ("report", f"{layout.report}", f"python -m webbrowser {layout.report}"),
        (
            "MLflow UI",
            f"experiment {settings.experiment}",
            _ui_command(),
        ),
        (
            "promoted model" if alias else "newest model",
            model if alias else f"{model} (no round has passed the gate yet)",
            f"exemplar select 'your text' -k 4 --model {model}",
        ),
    ]
    console.print()
    for what, where, command in rows:
        console.print(f"[bold]{what:15}[/] {where}", highlight=False)
        console.print(f"{'':15} [cyan].venv/bin/{command}[/]", highlight=False, soft_wrap=True)


def _ui_command() -> str:
    """Return what opens the MLflow UI: of the server in use, or of the database here."""
    server = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if server.startswith(("http://", "https://")):
        return f"python -m webbrowser {server}"
    return f"mlflow ui --backend-store-uri {server or 'sqlite:///mlflow.db'}"


def print_registry(store: Store, name: str) -> None:
    """Print the versions of a registered model with aliases, round, average and gate result."""
    from rich.console import Console
    from rich.table import Table

    from exemplar.registry import versions

    rows = [record.row() for record in versions.list_versions(store, name)]
    if not rows:
        raise RegistryError(
            f"No model {name!r} is registered at {store.place}. Run the promotion step first "
            "(`exemplar run`)."
        )
    table = Table(title=name)
    for column in rows[0]:
        table.add_column(column)
    for row in rows:
        table.add_row(*row.values())
    Console().print(table)
