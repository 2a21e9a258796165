"""What the promotion gate decided, task by task, and how it says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from exemplar.evaluation.significance import Interval

_SHOWN = 5  # names listed in a sentence before "and N more"
_COLUMNS = (
    "task",
    "examples",
    "champion",
    "challenger",
    "difference",
    "interval",
    "p (Holm)",
    "smallest change it can show",
    "verdict",
)


@dataclass(frozen=True, slots=True)
class TaskChange:
    """How one task changed from champion to challenger.

    `interval` is that of the mean difference. `p_holm` is None for a task outside the guard, and
    all of `p`, `test` and `minimum_detectable` are None where only task means were given.
    `verdict`: "blocked", "fell" (within the margin), "rose", "no clear change", "not guarded" or
    "not tested".
    """

    task: str
    num_examples: int
    champion: float
    challenger: float
    difference: float
    interval: Interval
    p: float | None
    p_holm: float | None
    test: str | None
    minimum_detectable: float | None
    verdict: str


@dataclass(frozen=True, slots=True)
class Decision:
    """The gate's answer, with everything it rests on."""

    promoted: bool
    reasons: tuple[str, ...]
    champion: float
    challenger: float
    interval: Interval
    wilcoxon_p: float
    margin: float
    alpha: float
    num_examples: int
    tasks: tuple[TaskChange, ...]

    @property
    def headline(self) -> str:
        """Return the decision as one sentence."""
        return f"{'Promoted' if self.promoted else 'Not promoted'}. {self.reasons[0]}"

    def count(self, *verdicts: str) -> int:
        """Return how many tasks have one of these verdicts."""
        return sum(change.verdict in verdicts for change in self.tasks)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, headline included."""
        plain = asdict(self)
        plain["reasons"] = list(self.reasons)
        plain["tasks"] = [asdict(change) for change in self.tasks]
        return {"headline": self.headline, **plain}

    def markdown(self) -> str:
        """Return the report that is stored with the model version."""
        lines = [
            f"# {'Promoted' if self.promoted else 'Not promoted'}",
            "",
            *(f"- {reason}" for reason in self.reasons),
            "",
            f"| {' | '.join(_COLUMNS)} |",
            f"|---{'|--:' * (len(_COLUMNS) - 2)}|---|",
        ]
        for change in self.tasks:
            interval = f"{change.interval.low:+.1f} to {change.interval.high:+.1f}"
            cells = [
                change.task.replace("|", "\\|"),
                f"{change.num_examples:,}",
                f"{change.champion:.1f}",
                f"{change.challenger:.1f}",
                f"{change.difference:+.1f}",
                "" if change.p is None else interval,
                _p(change.p_holm),
                "" if change.minimum_detectable is None else f"{change.minimum_detectable:.1f}",
                change.verdict,
            ]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"


def mean_sentence(
    before: float, after: float, interval: Interval, num_tasks: int, alpha: float
) -> str:
    """Say how the mean over tasks moved and what its interval means."""
    change = (
        f"The mean over {_count(num_tasks, 'task')} goes from {before:.1f} to {after:.1f}, "
        f"{interval.value:+.2f} points"
    )
    ends = f"{100 * (1 - alpha):g} % interval, {interval.low:+.2f} to {interval.high:+.2f},"
    if interval.low > 0:
        return f"{change}, and the {ends} lies wholly above zero."
    if interval.high < 0:
        return f"{change}, and the {ends} lies wholly below zero: the challenger is worse."
    return f"{change}, but the {ends} does not lie wholly above zero: it may be chance."


def guard_sentence(changes: Sequence[TaskChange], margin: float) -> str:
    """Say that no guarded task is hurt."""
    tested = sum(change.p_holm is not None for change in changes)
    if not tested:
        return "No task is guarded."
    return (
        f"None of {_count(tested, 'guarded task')} falls significantly by more than the margin of "
        f"{margin:g}."
    )


def spread_sentence(changes: Sequence[TaskChange], p: float) -> str:
    """Say how many tasks rise and fall."""
    rises = sum(change.difference > 1e-9 for change in changes)
    falls = sum(change.difference < -1e-9 for change in changes)
    return (
        f"Task by task, {rises} rise, {falls} fall and {len(changes) - rises - falls} stay "
        f"(Wilcoxon signed-rank p {p:.2g})."
    )


def small_sentence(changes: Sequence[TaskChange], margin: float) -> list[str]:
    """Say which guarded tasks could hide a fall larger than the margin."""
    small = [
        f"{change.task} ({change.minimum_detectable:.1f})"
        for change in changes
        if change.p_holm is not None
        and change.minimum_detectable is not None
        and change.minimum_detectable > margin
    ]
    if not small:
        return []
    more = f" and {len(small) - _SHOWN} more" if len(small) > _SHOWN else ""
    sentence = (
        f"Too small to show a fall of {margin:g} reliably; in brackets the smallest change each "
        f"can show, in points: {', '.join(small[:_SHOWN])}{more}."
    )
    return [sentence]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
