"""The promotion gate: may the challenger replace the champion?

A pure function of the outcomes of both on the same test examples. The challenger is promoted only
if the interval of the mean gain over tasks lies wholly above zero, and no guarded task falls both
significantly (Holm-corrected) and by more than the margin. All figures are points, 0 to 100.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from exemplar.errors import DataError
from exemplar.evaluation import decision as words
from exemplar.evaluation import significance
from exemplar.evaluation.decision import Decision, TaskChange
from exemplar.evaluation.significance import Interval
from exemplar.records import Outcome

__all__ = ["Decision", "TaskChange", "decide", "decide_from_means"]

_FEWEST_MEANS = 6  # with fewer, chance alone puts every difference on one side too often


def decide(
    champion: Sequence[Outcome],
    challenger: Sequence[Outcome],
    *,
    guarded_tasks: Collection[str] | None = None,
    margin: float = 1.0,
    alpha: float = 0.05,
    seed: int = 0,
    num_resamples: int = 10_000,
) -> Decision:
    """Decide on the outcomes of both over the same test examples, in any order.

    `guarded_tasks`: those that must not fall (None: all). `margin`: points a guarded task may
    lose, at least 0. `alpha`: level of the interval (1 - alpha) and of the guards. Raises
    `DataError` where the test sets differ, or are too small for any interval.
    """
    if not (margin >= 0 and 0 < alpha < 1):
        raise DataError(
            f"The margin must be 0 points or more, alpha within 0 and 1; got {margin} and {alpha}."
        )
    before, after = _align(champion, challenger)
    tasks = sorted({outcome.task for outcome in before.values()})
    guarded = _guarded(guarded_tasks, tasks)
    old: dict[str, list[float]] = {task: [] for task in tasks}
    new: dict[str, list[float]] = {task: [] for task in tasks}
    groups: dict[str, list[str]] = {task: [] for task in tasks}
    for example_id in sorted(before):  # the order of rows must not change a figure
        outcome = before[example_id]
        old[outcome.task].append(outcome.score)
        new[outcome.task].append(after[example_id].score)
        groups[outcome.task].append(outcome.group)
    if len(tasks) == 1 and len(set(groups[tasks[0]]) - {""}) + groups[tasks[0]].count("") < 2:
        raise DataError(
            "The test set is one task with a single group of examples: nothing can be said about "
            "chance. Evaluate on more examples."
        )
    interval = significance.paired_interval(
        old, new, groups, seed=seed, num_resamples=num_resamples, confidence=1 - alpha
    )
    changes = [
        _change(task, old[task], new[task], groups[task], alpha, seed, num_resamples)
        for task in tasks
    ]
    changes = _judge(changes, guarded, margin, alpha)
    return _decision(changes, interval, margin, alpha)


def decide_from_means(
    champion_by_task: Mapping[str, float],
    challenger_by_task: Mapping[str, float],
    *,
    seed: int = 0,
    num_resamples: int = 10_000,
) -> Decision:
    """Decide on task means alone, as from a published table; tasks cannot be guarded then.

    The interval comes from resampling tasks. Raises `DataError` where the tasks differ or are
    fewer than 6.
    """
    tasks = sorted(champion_by_task)
    if tasks != sorted(challenger_by_task) or len(tasks) < _FEWEST_MEANS:
        raise DataError(
            f"Means of the same {_FEWEST_MEANS} or more tasks are needed on both sides, got "
            f"{len(tasks)} and {len(challenger_by_task)}, "
            f"{len(set(tasks) ^ set(challenger_by_task))} on one side only. "
            "With outcomes example by example, use `decide`."
        )
    old = {task: [champion_by_task[task]] for task in tasks}
    new = {task: [challenger_by_task[task]] for task in tasks}
    interval = significance.paired_interval(
        old, new, {task: [""] for task in tasks}, seed=seed, num_resamples=num_resamples
    )
    changes = []
    for task in tasks:
        a, b = champion_by_task[task], challenger_by_task[task]
        point = Interval(b - a, b - a, b - a)
        changes.append(
            TaskChange(task, 0, a, b, b - a, point, None, None, None, None, "not tested")
        )
    return _decision(changes, interval, margin=0.0, alpha=0.05)


def _align(
    champion: Sequence[Outcome], challenger: Sequence[Outcome]
) -> tuple[dict[str, Outcome], dict[str, Outcome]]:
    """Return both by example id; refuse them where they are not one test set."""
    before = {outcome.example_id: outcome for outcome in champion}
    after = {outcome.example_id: outcome for outcome in challenger}
    if len(before) != len(champion) or len(after) != len(challenger):
        raise DataError(
            "An example occurs twice: the champion has "
            f"{len(champion):,} outcomes of {len(before):,} examples, the challenger "
            f"{len(challenger):,} of {len(after):,}. Rerun the evaluation."
        )
    shared = before.keys() & after.keys()
    moved = sum(
        (before[key].task, before[key].group) != (after[key].task, after[key].group)
        for key in shared
    )
    if not shared or moved or len(shared) < max(len(before), len(after)):
        raise DataError(
            f"Different test sets: {len(before) - len(shared):,} examples only with the champion, "
            f"{len(after) - len(shared):,} only with the challenger, {len(shared):,} with both"
            f"{f', {moved:,} of which under another task or group' if moved else ''}. A difference "
            "means something only on the same examples: evaluate both on one test set."
        )
    return before, after


def _guarded(guarded_tasks: Collection[str] | None, tasks: Sequence[str]) -> set[str]:
    guarded = set(tasks if guarded_tasks is None else guarded_tasks)
    if unknown := sorted(guarded - set(tasks)):
        raise DataError(
            f"Guarded tasks without outcomes: {', '.join(unknown)}. A guard that never looks "
            f"would pass everything; the test set holds {', '.join(tasks)}."
        )
    return guarded


def _change(
    task: str,
    old: list[float],
    new: list[float],
    groups: list[str],
    alpha: float,
    seed: int,
    num_resamples: int,
) -> TaskChange:
    differences = [b - a for a, b in zip(old, new, strict=True)]
    alone = len(set(groups) - {""}) == 0
    if alone and {*old, *new} <= {0.0, 100.0}:
        test, p = "McNemar", significance.mcnemar(old, new)
    else:  # graded scores, or examples that share a passage and so are not independent
        test = "sign flip"
        p = significance.sign_flip(differences, groups, seed=seed)
    interval = significance.bootstrap_mean(
        {task: differences},
        {task: groups},
        seed=seed,
        num_resamples=num_resamples,
        confidence=1 - alpha,
    )
    before, after = sum(old) / len(old), sum(new) / len(new)
    smallest = significance.minimum_detectable_effect(differences, groups, alpha=alpha)
    return TaskChange(
        task, len(old), before, after, after - before, interval, p, None, test, smallest, ""
    )


def _judge(
    changes: Sequence[TaskChange], guarded: set[str], margin: float, alpha: float
) -> list[TaskChange]:
    """Correct the p-values over the guarded tasks and give every task its verdict."""
    watched = [change for change in changes if change.task in guarded]
    corrected = significance.holm([change.p or 0.0 for change in watched])
    p_holm = {change.task: p for change, p in zip(watched, corrected, strict=True)}
    judged = []
    for change in changes:
        p = p_holm.get(change.task)
        verdict = "no clear change"
        if p is None:
            verdict = "not guarded"
        elif p < alpha and change.difference > 0:
            verdict = "rose"
        elif p < alpha and change.difference < 0:
            verdict = "blocked" if change.difference < -margin else "fell"
        judged.append(replace(change, p_holm=p, verdict=verdict))
    return judged


def _decision(
    changes: Sequence[TaskChange], interval: Interval, margin: float, alpha: float
) -> Decision:
    gained = interval.low > 0
    blocked = [change for change in changes if change.verdict == "blocked"]
    p = significance.wilcoxon([change.difference for change in changes])
    before = sum(change.champion for change in changes) / len(changes)
    after = sum(change.challenger for change in changes) / len(changes)
    mean = words.mean_sentence(before, after, interval, len(changes), alpha)
    guards = [
        f"{change.task} falls by {-change.difference:.1f} points ({change.champion:.1f} to "
        f"{change.challenger:.1f}, p {change.p_holm:.2g} after Holm), more than the margin of "
        f"{margin:g}."
        for change in blocked
    ]
    reasons = [*guards, mean] if gained else [mean, *guards]
    if not blocked:
        reasons.append(words.guard_sentence(changes, margin))
    reasons.append(words.spread_sentence(changes, p))
    reasons.extend(words.small_sentence(changes, margin))
    return Decision(
        promoted=gained and not blocked,
        reasons=tuple(reasons),
        champion=before,
        challenger=after,
        interval=interval,
        wilcoxon_p=p,
        margin=margin,
        alpha=alpha,
        num_examples=sum(change.num_examples for change in changes),
        tasks=tuple(changes),
    )
