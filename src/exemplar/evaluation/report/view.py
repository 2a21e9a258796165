"""What the report page shows, as plain values: marks in percent, figures as text.

Nothing here knows HTML. A strip is a row of dots on a common scale; a curve is a set of lines.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from exemplar.evaluation.data_card import TaskCard
from exemplar.evaluation.decision import Decision
from exemplar.evaluation.report.marks import Scale, View, curve, interval

_LABELS = {
    "zero_shot": "Zero-shot",
    "random": "Random",
    "kmeans": "K-means",
    "bm25": "BM25",
    "untrained": "Untrained encoder",
}
_STEPS = {"reward_training": "Reward model", "kd_training": "Retriever"}
_CHARTED = re.compile(r"loss|held_out/(?!chance$)[^/]+")  # no single tasks, no constants
_HELD_OUT = "held_out/"


def round_number(method: str) -> int | None:
    """Return N of "rN", None for a baseline."""
    match = re.fullmatch(r"r([1-9]\d*)", method)
    return int(match[1]) if match else None


@dataclass(frozen=True)
class Names:
    """The methods, what to call them, and which two are compared throughout."""

    methods: Sequence[str]
    labels: Mapping[str, str]
    metrics: Mapping[str, Mapping[str, Any]]

    def label(self, method: str) -> str:
        """Return the name to show."""
        number = round_number(method)
        default = f"Round {number}" if number else _LABELS.get(method, method)
        return self.labels.get(method, default)

    def kind(self, method: str) -> str:
        """Return the style of a method's marks: last, round, best or baseline."""
        if method == self.last_round:
            return "last"
        if round_number(method):
            return "round"
        return "best" if method == self.best_baseline else "baseline"

    @cached_property
    def rounds(self) -> list[str]:
        """Rounds in order."""
        return sorted(
            (method for method in self.methods if round_number(method)),
            key=lambda method: round_number(method) or 0,
        )

    @property
    def last_round(self) -> str | None:
        """The newest round, if there is one."""
        return self.rounds[-1] if self.rounds else None

    @cached_property
    def best_baseline(self) -> str | None:
        """The baseline with the highest average, the first of equals."""
        baselines = [method for method in self.methods if not round_number(method)]
        if not baselines:
            return None
        return max(baselines, key=lambda method: interval(self.metrics[method]["average"]).value)


def averages(names: Names, metrics: Mapping[str, Mapping[str, Any]]) -> View:
    """Return the average of each method with its interval, on one scale."""
    figures = {method: interval(metrics[method]["average"]) for method in names.methods}
    scale = Scale.around([end for figure in figures.values() for end in (figure.low, figure.high)])
    rows = [
        {
            "label": names.label(method),
            "kind": names.kind(method),
            "figure": figure,
            "at": scale.percent(figure.value),
            "low": scale.percent(figure.low),
            "width": scale.percent(figure.high) - scale.percent(figure.low),
        }
        for method, figure in figures.items()
    ]
    best = names.best_baseline
    reference = scale.percent(figures[best].value) if best else None
    return {"rows": rows, "marks": scale.marks, "reference": reference}


def decisions(names: Names, found: Mapping[str, Mapping[str, Any]]) -> list[View]:
    """Return the gate's decisions, newest round first."""
    ordered = sorted(found, key=lambda method: round_number(method) or 0, reverse=True)
    return [{**found[method], "label": names.label(method)} for method in ordered]


def tasks(
    names: Names, metrics: Mapping[str, Mapping[str, Any]], categories: Mapping[str, str]
) -> View:
    """Return strips of all methods by category, each followed by its tasks."""
    first = metrics[names.methods[0]]
    groups: dict[str, list[str]] = {name: [] for name in sorted(first["categories"])}
    for task in sorted(first["tasks"]):
        groups.setdefault(categories.get(task, ""), []).append(task)
    figures = [
        *(figure for method in names.methods for figure in metrics[method]["categories"].values()),
        *(figure for method in names.methods for figure in metrics[method]["tasks"].values()),
    ]
    scale, rows = Scale.around([interval(figure).value for figure in figures]), []
    for category, members in groups.items():
        alone = len(members) == 1  # its category would only repeat it
        if category in first["categories"] and not alone:
            rows.append(_strip(names, metrics, scale, "categories", category))
        for task in members:
            strip = _strip(names, metrics, scale, "tasks", task)
            held_out = "held out" if first["tasks"][task].get("held_out") else ""
            notes = [note for note in (category if alone else "", held_out) if note]
            rows.append({**strip, "note": ", ".join(notes), "alone": alone})
    return {"rows": rows, "marks": scale.marks}


def _strip(
    names: Names, metrics: Mapping[str, Mapping[str, Any]], scale: Scale, part: str, name: str
) -> View:
    cells: list[View] = []
    for method in names.methods:
        found = metrics[method][part].get(name)
        value = None if found is None else interval(found).value
        cells.append(
            {
                "label": names.label(method),
                "kind": names.kind(method),
                "value": value,
                "at": None if value is None else scale.percent(value),
            }
        )
    facts = metrics[names.methods[0]][part].get(name)
    known = [cell["value"] for cell in cells if cell["value"] is not None]
    return {
        "name": name,
        "note": "",
        "alone": False,
        "category": part == "categories",
        "metric": facts.get("metric", "") if isinstance(facts, Mapping) else "",
        "cells": cells,
        "best": max(known) if known else None,
    }


def gains(gain: Decision) -> View:
    """Return the gain of each task over the best baseline, largest first."""
    ends = [end for change in gain.tasks for end in (change.interval.low, change.interval.high)]
    scale = Scale.around([*ends, gain.interval.low, gain.interval.high], include=0.0)
    every = [
        ("All tasks", gain.interval, None),
        *(
            (change.task, change.interval, change)
            for change in sorted(gain.tasks, key=lambda change: -change.difference)
        ),
    ]
    rows = []
    for name, figure, change in every:
        clear = change is None or change.verdict in ("rose", "fell", "blocked")
        clear = clear and (change is not None or figure.low > 0 or figure.high < 0)
        rows.append(
            {
                "name": name,
                "total": change is None,
                "figure": figure,
                "change": change,
                "kind": ("up" if figure.value > 0 else "down") if clear else "unclear",
                "at": scale.percent(figure.value),
                "low": scale.percent(figure.low),
                "width": scale.percent(figure.high) - scale.percent(figure.low),
            }
        )
    return {"rows": rows, "marks": scale.marks, "zero": scale.percent(0.0)}


def rounds(names: Names, metrics: Mapping[str, Mapping[str, Any]]) -> View | None:
    """Return the average over rounds with its interval, and the best baseline as a level."""
    if not names.rounds:
        return None
    numbers = [round_number(method) or 0 for method in names.rounds]
    figures = [interval(metrics[method]["average"]) for method in names.rounds]
    lines = [("Average", "last", list(zip(numbers, (f.value for f in figures), strict=True)))]
    if best := names.best_baseline:
        level = interval(metrics[best]["average"]).value
        lines.append((names.label(best), "best", [(number, level) for number in numbers]))
    band = [(number, f.low, f.high) for number, f in zip(numbers, figures, strict=True)]
    return curve("Average by round", "round", lines, band=band, whole=True)


def training(
    names: Names, histories: Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]]
) -> list[View]:
    """Return for each trained model the loss and the figures on held-out queries, by round."""
    charts = []
    for step, model in _STEPS.items():
        rows = {m: found[step] for m, found in histories.items() if found.get(step)}
        keys = {key: None for history in rows.values() for row in history for key in row}
        for key in filter(_CHARTED.fullmatch, keys):
            lines = [
                (
                    names.label(m),
                    names.kind(m),
                    [(r["update"], r[key]) for r in history if key in r],
                )
                for m, history in rows.items()
            ]
            what = key.removeprefix(_HELD_OUT).replace("_", " ")
            where = ", held-out queries" if key.startswith(_HELD_OUT) else ", training"
            charts.append(curve(f"{model}: {what}{where}", "update", lines))
    return charts


def costs(names: Names, rows: Sequence[Mapping[str, Any]]) -> View | None:
    """Return seconds, sequences and speed by step, with the share of the longest as a bar."""
    if not rows:
        return None
    seconds = [float(row["seconds"]) for row in rows]
    longest = max(seconds) or 1.0
    shown = []
    for row, second in zip(rows, seconds, strict=True):
        target, tokens = str(row.get("target") or ""), row.get("tokens")
        speed = tokens / second if tokens and second else row.get("tokens_per_second")
        shown.append(
            {
                "step": row["step"],
                "target": names.label(target) if target else "",
                "seconds": second,
                "share": round(100 * second / longest, 2),
                "sequences": row.get("sequences"),
                "speed": speed,
            }
        )
    return {"rows": shown, "seconds": sum(seconds)}


def data_card(
    cards: Sequence[TaskCard], categories: Mapping[str, str], about: Mapping[str, str]
) -> View:
    """Return what there is of each task, the totals, and the settings."""
    rows = [{"category": categories.get(card.task, ""), "card": card} for card in cards]
    totals = [sum(getattr(card, name) for card in cards) for name in ("pool", "train", "test")]
    return {"rows": rows, "totals": totals, "about": dict(about)}
