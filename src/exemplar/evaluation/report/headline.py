"""The top of the report page: the claim in one sentence, and the figures to remember."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from exemplar.evaluation.report.marks import View, interval

if TYPE_CHECKING:
    from exemplar.evaluation.decision import Decision
    from exemplar.evaluation.report.view import Names
    from exemplar.evaluation.significance import Interval


def headline(
    names: Names,
    metrics: Mapping[str, Mapping[str, Any]],
    gain: Decision | None,
    decided: Mapping[str, Mapping[str, Any]],
) -> View:
    """Return the claim in one sentence, and the few figures to remember."""
    last, best = names.last_round, names.best_baseline
    shown = last or best or names.methods[0]
    average = interval(metrics[shown]["average"])
    facts = [_fact(f"{names.label(shown)}, average", average, signed=False)]
    if last is None or best is None:
        claim = f"{names.label(shown)} scores {average.value:.1f} on average."
    else:
        baseline = interval(metrics[best]["average"]).value
        difference = gain.interval.value if gain else average.value - baseline
        sure = gain is not None and (gain.interval.low > 0 or gain.interval.high < 0)
        amount = (
            "as much as"
            if abs(difference) < 0.05
            else (f"{abs(difference):.1f} points {'more' if difference > 0 else 'less'} than")
        )
        claim = (
            f"{names.label(last)} scores {average.value:.1f} on average, {amount} "
            f"{names.label(best)}, the best baseline"
        )
        claim += "." if gain is None or sure else "; that may be chance."
        if gain:
            facts.append(_fact(f"Gain over {names.label(best)}", gain.interval, signed=True))
            facts.append(
                {
                    "name": "Tasks that clearly change",
                    "value": f"{gain.count('rose')} up, {gain.count('fell', 'blocked')} down",
                    "note": f"of {len(gain.tasks)}, at 5 % after Holm's correction",
                }
            )
    promoted = [method for method in names.rounds if decided.get(method, {}).get("promoted")]
    if promoted:
        value = interval(metrics[promoted[-1]]["average"]).value
        note = f"scores {value:.1f}; the newest round that the gate let through"
        facts.append({"name": "In use", "value": names.label(promoted[-1]), "note": note})
    return {"claim": claim, "facts": facts, "best": best and names.label(best)}


def _fact(name: str, figure: Interval, *, signed: bool) -> View:
    form = "{:+.1f}" if signed else "{:.1f}"
    ends = f"{form.format(figure.low)} to {form.format(figure.high)}"
    note = f"95 % interval {ends}" if figure.high > figure.low else ""
    return {"name": name, "value": form.format(figure.value), "note": note}
