"""Figures on held-out queries: how well a model's scores agree with what they should say.

Each takes the candidates of one query; the means over queries are the caller's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def picks_positive(scores: Sequence[float], positive: int, negatives: Sequence[int]) -> bool:
    """Whether the positive has the highest score of its group; a tie is no success."""
    return all(scores[positive] > scores[negative] for negative in negatives)


def chance_of_picking(negatives: Sequence[int]) -> float:
    """The share of successes of `picks_positive` under scores drawn blindly."""
    return 1 / (1 + len(set(negatives)))


def pair_accuracy(scores: Sequence[float], ranking: Sequence[int]) -> float:
    """The share of candidate pairs that scores order as `ranking` (best first) does.

    Equal scores count half, so that blind scores have 0.5 on average.
    """
    ordered = np.asarray(scores, dtype=np.float64)[list(ranking)]
    differences = ordered[:, None] - ordered[None, :]
    above = differences[np.triu_indices(len(ordered), k=1)]
    return float(np.mean(np.where(above == 0, 0.5, above > 0)))


def spearman(scores: Sequence[float], targets: Sequence[float]) -> float:
    """Spearman's rank correlation, ties at their mean rank; 0 where either side is constant."""
    from scipy.stats import rankdata

    ranks = [rankdata(values) for values in (scores, targets)]
    centred = [values - values.mean() for values in ranks]
    norm = float(np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))
    return float((centred[0] * centred[1]).sum()) / norm if norm else 0.0


def agreement_at(scores: Sequence[float], carries: Sequence[bool], k: int) -> float:
    """The share of the k candidates of highest score that carry the query's own label."""
    best = sorted(range(len(scores)), key=lambda i: -scores[i])[:k]
    return sum(carries[i] for i in best) / len(best)
