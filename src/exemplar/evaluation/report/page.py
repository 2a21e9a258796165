"""The report: one self-contained HTML page, and the figures of all methods as CSV.

The page loads nothing from anywhere: styles, script and data are inside it. Charts are HTML tables
whose cells hold marks placed in percent (and SVG lines for curves) rather than a chart library:
the page stays small, follows light and dark, reflows on a phone with its text at full size, and a
screen reader gets the figures, since the table is the chart. Templates lie beside this file;
everything that comes from data is escaped by Jinja, or set by `textContent` in the script.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exemplar.errors import DataError
from exemplar.evaluation.data_card import TaskCard
from exemplar.evaluation.decision import Decision
from exemplar.evaluation.gate import decide
from exemplar.evaluation.report import explorer, headline, marks, view
from exemplar.records import Candidates, Example, Outcome

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class ReportData:
    """Everything the page shows. Only `methods` and `metrics` must be filled.

    `methods`: keys in the order of display; "r1", "r2", ... are rounds, all others baselines.
    `metrics`: content of metrics.json by method. `categories`: category by task. `outcomes`,
    `demonstrations` (for their similarities): by method. `pool`: the examples that they name.
    `cards`: the data, task by task.
    `histories`: by round, then "reward_training" and "kd_training", the history rows of
    training.json. `costs`: rows with step, target, seconds and where known sequences and tokens.
    `decisions`: by round, the gate's `to_dict()`. `about`: settings worth knowing, as text.
    `explorer_examples`: test examples in the explorer, in all.
    """

    methods: Sequence[str]
    metrics: Mapping[str, Mapping[str, Any]]
    title: str = "Exemplar report"
    labels: Mapping[str, str] = field(default_factory=dict)
    about: Mapping[str, str] = field(default_factory=dict)
    categories: Mapping[str, str] = field(default_factory=dict)
    outcomes: Mapping[str, Sequence[Outcome]] = field(default_factory=dict)
    demonstrations: Mapping[str, Sequence[Candidates]] = field(default_factory=dict)
    test: Sequence[Example] = ()
    pool: Sequence[Example] = ()
    cards: Sequence[TaskCard] = ()
    histories: Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]] = field(
        default_factory=dict
    )
    costs: Sequence[Mapping[str, Any]] = ()
    decisions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    margin: float = 1.0
    seed: int = 0
    explorer_examples: int = 300


def build_report(data: ReportData) -> str:
    """Return the page. Raises `DataError` where a method has no metrics or test sets differ."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    _check(data)
    names = view.Names(data.methods, data.labels, data.metrics)
    gain = _gain(data, names)
    shown = {
        "title": data.title,
        "headline": headline.headline(names, data.metrics, gain, data.decisions),
        "averages": view.averages(names, data.metrics),
        "decisions": view.decisions(names, data.decisions),
        "tasks": view.tasks(names, data.metrics, data.categories),
        "gains": view.gains(gain) if gain else None,
        "rounds": view.rounds(names, data.metrics),
        "training": view.training(names, data.histories),
        "costs": view.costs(names, data.costs),
        "card": view.data_card(data.cards, data.categories, data.about),
        "explorer": explorer.payload(names, data) if data.outcomes and data.test else None,
        "names": names,
    }
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(marks.FILTERS)
    # Long names may break behind an underscore; `join` escapes what it joins.
    environment.filters["breakable"] = lambda name: Markup("_<wbr>").join(name.split("_"))
    style, script = (
        Markup((_HERE / name).read_text(encoding="utf-8"))  # our own files, not data
        for name in ("page.css", "page.js")
    )
    return environment.get_template("page.html").render(**shown, style=style, script=script)


def rounds_csv(methods: Sequence[str], metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """Return one row a method: method, round (0 for baselines), average, low, high, categories."""
    categories = sorted({name for method in methods for name in metrics[method]["categories"]})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "round", "average", "low", "high", *categories])
    for method in methods:
        average = marks.interval(metrics[method]["average"])
        shares = metrics[method]["categories"]
        values = [marks.interval(shares[name]).value for name in categories if name in shares]
        if len(values) != len(categories):
            raise DataError(
                f"{method} lacks categories that other methods have "
                f"({', '.join(sorted(set(categories) - set(shares)))}); evaluate it again."
            )
        figures = [average.value, average.low, average.high, *values]
        number = view.round_number(method) or 0
        writer.writerow([method, number, *(f"{figure:.4f}" for figure in figures)])
    return text.getvalue()


def _check(data: ReportData) -> None:
    if not data.methods:
        raise DataError("The report has no method to show; evaluate at least one.")
    missing = [method for method in data.methods if method not in data.metrics]
    if missing:
        raise DataError(f"No metrics for {', '.join(missing)}; run evaluation for them first.")


def _gain(data: ReportData, names: view.Names) -> Decision | None:
    """Compare the last round with the best baseline, where both have outcomes."""
    best, last = names.best_baseline, names.last_round
    if best is None or last is None or not {best, last} <= data.outcomes.keys():
        return None
    return decide(data.outcomes[best], data.outcomes[last], margin=data.margin, seed=data.seed)
