"""How sure a difference is: intervals, paired tests, and the smallest effect a task can show.

Scores come task by task, 0 to 100 per example. Examples of one group (a shared passage) move
together, so the group is what is resampled and what is flipped; an example whose group is ""
stands alone. Every draw is seeded by names: same scores in the same order, same figures; swapping
champion and challenger negates an interval exactly and leaves every p-value as it is.

Shapes: T tasks, R resamples, G groups of a task, U distinct groups.

Sources: paired tests, Dror et al. 2018 (P18-1128); Wilcoxon over data sets, Demsar 2006 (JMLR
7:1-30); clustered errors and power, Miller 2024 (arXiv 2411.00640); Holm 1979.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from exemplar.errors import DataError
from exemplar.seeding import derive_seed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

_CHUNK = 4_000_000  # drawn numbers held at once: 32 MB of float64
_MULTINOMIAL_COST = 16  # one binomial draw costs about as much as 16 index draws
_EXACT_GROUPS = 12  # up to 2^12 sign patterns are enumerated, beyond that they are drawn


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and the ends of its confidence interval, in points (0 to 100)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class _Groups:
    """The score sums and the sizes of a task's groups, both of shape (G,)."""

    sums: Floats
    sizes: Floats

    @property
    def mean(self) -> float:
        return float(self.sums.sum() / self.sizes.sum())


def bootstrap_mean(
    scores_by_task: Mapping[str, Sequence[float]],
    groups_by_task: Mapping[str, Sequence[str]],
    *,
    seed: int,
    num_resamples: int = 2000,
    confidence: float = 0.95,
) -> Interval:
    """Return the mean over tasks with a percentile interval from a two-level bootstrap.

    A resample draws tasks with replacement and, for every drawn task afresh, groups with
    replacement. With a single task only its groups are drawn. Raises `DataError` on no task, an
    empty task, groups that do not match the scores, or a score that is not finite.
    """
    tasks = sorted(scores_by_task)
    if not tasks:
        raise DataError("No task to average: at least one task with outcomes is needed.")
    groups = [_collect(task, scores_by_task[task], groups_by_task.get(task)) for task in tasks]
    if len(tasks) == 1:
        drawn_RT = np.zeros((num_resamples, 1), dtype=np.int64)
    else:
        generator = np.random.default_rng(derive_seed(seed, "bootstrap_tasks"))
        drawn_RT = generator.integers(len(tasks), size=(num_resamples, len(tasks)))
    means_RT = np.empty(drawn_RT.shape)
    for index, task in enumerate(tasks):
        chosen_RT = drawn_RT == index
        generator = np.random.default_rng(derive_seed(seed, "bootstrap_groups", task))
        means_RT[chosen_RT] = _resampled_means(groups[index], int(chosen_RT.sum()), generator)
    tail = 50 * (1 - confidence)
    low, high = np.percentile(means_RT.mean(axis=1), [tail, 100 - tail])
    value = float(np.mean([task_groups.mean for task_groups in groups]))
    return Interval(value, float(low), float(high))


def paired_interval(
    champion_by_task: Mapping[str, Sequence[float]],
    challenger_by_task: Mapping[str, Sequence[float]],
    groups_by_task: Mapping[str, Sequence[str]],
    *,
    seed: int,
    num_resamples: int = 2000,
    confidence: float = 0.95,
) -> Interval:
    """Return `bootstrap_mean` of challenger minus champion, example by example.

    Both must hold the same tasks with the same examples in the same order; the first two are
    checked (`DataError`).
    """
    if set(champion_by_task) != set(challenger_by_task):
        raise DataError(
            f"Champion and challenger cover different tasks: {sorted(champion_by_task)} and "
            f"{sorted(challenger_by_task)}. Evaluate both on the same test set."
        )
    differences = {}
    for task, champion in champion_by_task.items():
        challenger = challenger_by_task[task]
        if len(champion) != len(challenger):
            raise DataError(
                f"Task {task!r}: the champion has {len(champion)} outcomes, the challenger "
                f"{len(challenger)}. Evaluate both on the same test set."
            )
        differences[task] = [b - a for a, b in zip(champion, challenger, strict=True)]
    return bootstrap_mean(
        differences, groups_by_task, seed=seed, num_resamples=num_resamples, confidence=confidence
    )


def wilcoxon(differences: Sequence[float]) -> float:
    """Return the two-sided p-value of Wilcoxon's signed-rank test on per-task differences.

    Ties with zero are left out, as Wilcoxon does; with nothing left p is 1.
    """
    from scipy.stats import wilcoxon as signed_rank

    rounded = np.round(np.asarray(differences, dtype=np.float64), 9)  # 1.1 - 1.0 ties with 0.1
    rounded = rounded[rounded != 0]
    return float(signed_rank(rounded).pvalue) if len(rounded) else 1.0


def mcnemar(champion: Sequence[float], challenger: Sequence[float]) -> float:
    """Return the two-sided p-value of McNemar's exact test on paired right-or-wrong scores."""
    from scipy.stats import binomtest

    wins = sum(b > a for a, b in zip(champion, challenger, strict=True))
    losses = sum(b < a for a, b in zip(champion, challenger, strict=True))
    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def sign_flip(
    differences: Sequence[float],
    groups: Sequence[str],
    *,
    seed: int,
    num_permutations: int = 10_000,
) -> float:
    """Return the two-sided p-value of a sign-flip permutation test on paired differences.

    The sign of a whole group flips at once. Up to 12 groups that differ, every pattern is counted
    and p is exact; beyond, `num_permutations` patterns are drawn.
    """
    sums_G = _collect("sign_flip", differences, groups).sums
    sums_G = sums_G[np.round(sums_G, 9) != 0]  # a zero is the same with either sign
    num_groups = len(sums_G)
    if num_groups == 0:
        return 1.0
    observed = abs(float(sums_G.sum())) - 1e-9 * float(np.abs(sums_G).sum())
    if num_groups <= _EXACT_GROUPS:
        patterns = np.arange(2**num_groups)[:, None] >> np.arange(num_groups) & 1
        return float(np.mean(np.abs((2.0 * patterns - 1) @ sums_G) >= observed))
    generator = np.random.default_rng(derive_seed(seed, "sign_flip"))
    extreme = 0
    chunk = max(1, _CHUNK // num_groups)
    for start in range(0, num_permutations, chunk):
        shape = (min(chunk, num_permutations - start), num_groups)
        bits = generator.integers(2, size=shape, dtype=np.uint8)
        extreme += int((np.abs((2.0 * bits - 1) @ sums_G) >= observed).sum())
    return (1 + extreme) / (1 + num_permutations)  # the observed pattern is one of them


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for testing them all (Holm's step-down), in the given order."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def minimum_detectable_effect(
    differences: Sequence[float],
    groups: Sequence[str],
    *,
    alpha: float = 0.05,
    power: float = 0.8,
) -> float:
    """Return the smallest true difference, in points, that this task would probably show.

    (z of 1 - alpha/2 plus z of the power) times the clustered standard error of the mean paired
    difference. Where no pair differs there is no error to estimate: then it is what an exact test
    needs, ceil(log2(2 / alpha)) groups of all moving one way by 100 points. At most 100.
    """
    from scipy.stats import norm

    task = _collect("differences", differences, groups)
    num_groups = len(task.sums)
    residuals_G = task.sums - task.mean * task.sizes
    if num_groups < 2 or not np.any(np.abs(residuals_G) > 1e-9):
        return min(100.0, 100.0 * math.ceil(math.log2(2 / alpha)) / num_groups)
    variance = float(residuals_G @ residuals_G) * num_groups / (num_groups - 1)
    error = math.sqrt(variance) / float(task.sizes.sum())
    return min(100.0, float(norm.ppf(1 - alpha / 2) + norm.ppf(power)) * error)


def _collect(task: str, scores: Sequence[float], groups: Sequence[str] | None) -> _Groups:
    """Add up scores by group, groups in order of their first example."""
    if groups is None or len(groups) != len(scores):
        raise DataError(
            f"Task {task!r} has {len(scores)} scores and "
            f"{'no' if groups is None else len(groups)} groups; give one group an example "
            '("" where an example stands alone).'
        )
    if not len(scores):
        raise DataError(f"Task {task!r} has no outcomes; leave it out or evaluate it.")
    values = np.asarray(scores, dtype=np.float64)
    if not np.isfinite(values).all():
        raise DataError(f"Task {task!r} has a score that is not a finite number.")
    places: dict[str | int, int] = {}
    keys = [group or index for index, group in enumerate(groups)]
    indices = np.array([places.setdefault(key, len(places)) for key in keys])
    sums = np.bincount(indices, weights=values).astype(np.float64)
    return _Groups(sums, np.bincount(indices).astype(np.float64))


def _resampled_means(groups: _Groups, number: int, generator: np.random.Generator) -> Floats:
    """Return the means of `number` resamples of the groups, each as many groups as there are.

    Equal groups are interchangeable, so right-or-wrong scores need a few multinomial counts
    instead of one index for each example: exactly the same distribution, far less work.
    """
    num_groups = len(groups.sums)
    pairs_G = groups.sums + 1j * groups.sizes
    _, firsts, counts = np.unique(pairs_G, return_index=True, return_counts=True)
    # Order by first appearance, not by value: negated scores must meet the same draws.
    order = np.argsort(firsts)
    pairs_U, counts_U = pairs_G[firsts[order]], counts[order]
    if len(pairs_U) * _MULTINOMIAL_COST <= num_groups:
        totals = generator.multinomial(num_groups, counts_U / num_groups, size=number) @ pairs_U
        return np.asarray(totals.real / totals.imag)
    means, chunk = np.empty(number), max(1, _CHUNK // num_groups)
    equal = bool(np.all(groups.sizes == groups.sizes[0]))
    for start in range(0, number, chunk):
        stop = min(start + chunk, number)
        drawn = generator.integers(num_groups, size=(stop - start, num_groups), dtype=np.int32)
        sums = groups.sums[drawn].sum(axis=1)
        sizes = groups.sizes.sum() if equal else groups.sizes[drawn].sum(axis=1)
        means[start:stop] = sums / sizes
    return means
