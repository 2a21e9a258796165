"""Marks of the report's charts: scales, places in percent, lines, and figures as text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from exemplar.evaluation.significance import Interval

View = dict[str, Any]


def interval(value: Any) -> Interval:
    """Read an interval out of metrics.json; a bare number is an interval of no width."""
    if isinstance(value, Mapping):
        return Interval(
            *(float(value.get(key, value["value"])) for key in ("value", "low", "high"))
        )
    return Interval(float(value), float(value), float(value))


@dataclass(frozen=True)
class Scale:
    """A linear axis from `low` to `high` with round ticks."""

    low: float
    high: float
    ticks: tuple[float, ...]

    @classmethod
    def around(cls, values: Sequence[float], *, include: float | None = None) -> Scale:
        """Return the tightest scale with about five round ticks that holds all values."""
        known = [*values, *([] if include is None else [include])] or [0.0]
        low, high = min(known), max(known)
        if high - low < 1e-9:
            low, high = low - 1, high + 1
        raw = (high - low) / 4
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw)
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        ticks = tuple(round(index * step, 10) for index in range(first, last + 1))
        return cls(ticks[0], ticks[-1], ticks)

    def trimmed(self, values: Sequence[float]) -> Scale:
        """Return the scale cut to the range of the values, for an axis of time."""
        low, high = min(values), max(values)
        if low == high:
            return self
        return Scale(low, high, tuple(tick for tick in self.ticks if low <= tick <= high))

    def percent(self, value: float) -> float:
        """Return the place of a value, 0 to 100 from low to high."""
        return round(100 * (value - self.low) / (self.high - self.low), 3)

    @property
    def marks(self) -> list[View]:
        """Ticks with place and text."""
        return [{"at": self.percent(tick), "text": f"{tick:g}"} for tick in self.ticks]


def curve(
    title: str,
    x_name: str,
    lines: Sequence[tuple[str, str, Sequence[tuple[float, float]]]],
    *,
    band: Sequence[tuple[float, float, float]] = (),
    whole: bool = False,
) -> View:
    """Return lines (name, style, points) placed in a square of 100 by 100, y downwards."""
    xs = sorted({x for _, _, points in lines for x, _ in points})
    ys = [y for _, _, points in lines for _, y in points]
    y_scale = Scale.around([*ys, *(end for _, low, high in band for end in (low, high))])
    x_scale = Scale.around(xs).trimmed(xs)
    if whole:  # rounds: a tick a round, no fraction
        pad = 0.5 if len(xs) == 1 else 0.0
        x_scale = Scale(xs[0] - pad, xs[-1] + pad, tuple(xs))

    def place(x: float, y: float) -> tuple[float, float]:
        return x_scale.percent(x), round(100 - y_scale.percent(y), 3)

    series = []
    for name, kind, points in lines:
        places = [place(x, y) for x, y in points]
        text = " ".join(f"{x},{y}" for x, y in places)
        dots = places if len(places) <= 12 else places[-1:]
        series.append(
            {"name": name, "kind": kind, "line": text, "dots": dots, "values": dict(points)}
        )
    edge = [*((x, high) for x, _, high in band), *((x, low) for x, low, _ in reversed(band))]
    return {
        "title": title,
        "x_name": x_name,
        "xs": xs,
        "series": series,
        "band": " ".join("{},{}".format(*place(x, y)) for x, y in edge),
        "x_marks": x_scale.marks,
        "y_marks": [{**mark, "at": 100 - mark["at"]} for mark in y_scale.marks],
    }


def duration(seconds: float) -> str:
    """Return seconds as text: 4.2 s, 3 min 05 s, 2 h 10 min."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


FILTERS = {
    "duration": duration,
    "points": lambda value: "–" if value is None else f"{value:.1f}",
    "signed": lambda value: f"{value:+.1f}".replace("-", "−"),
    "count": lambda value: "–" if value is None else f"{value:,.0f}",
    "p_value": lambda p: "–" if p is None else ("< 0.001" if p < 0.001 else f"{p:.3f}"),
}
