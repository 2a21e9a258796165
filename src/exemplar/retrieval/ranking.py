"""What every retriever shares: who may be a candidate, and exact top-k.

Shape suffixes: Q queries, P pool examples.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from exemplar.errors import DataError, TaskError
from exemplar.records import Example

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    BoolArray = NDArray[np.bool_]
    IntArray = NDArray[np.int64]


def normalise(text: str) -> str:
    """Return a text as it is compared: compatibility forms, case and white space made one."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def by_task(examples: Sequence[Example]) -> dict[str, list[Example]]:
    """Group examples by task; tasks and examples keep the order in which they came."""
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.task, []).append(example)
    return groups


def exclusion(query: Example, candidates: Sequence[Example]) -> BoolArray:
    """Return the mask (P,) of candidates that a query may not see.

    Those are the query itself and every example with the same normalised query: they would hand
    the LM the answer.
    """
    import numpy as np

    mask_P = np.zeros(len(candidates), dtype=np.bool_)
    mask_P[sorted(excluder(candidates)(query))] = True
    return mask_P


def excluder(candidates: Sequence[Example]) -> Callable[[Example], set[int]]:
    """Return a function from a query to the positions that `exclusion` masks.

    The candidates are normalised once, so that many queries cost little.
    """
    by_id = {example.example_id: position for position, example in enumerate(candidates)}
    by_query: dict[str, list[int]] = {}
    for position, example in enumerate(candidates):
        by_query.setdefault(normalise(example.query), []).append(position)

    def excluded(query: Example) -> set[int]:
        positions = set(by_query.get(normalise(query.query), ()))
        if query.example_id in by_id:
            positions.add(by_id[query.example_id])
        return positions

    return excluded


def top_k(
    similarities_QP: NDArray[np.floating], excluded_QP: BoolArray, k: int
) -> tuple[list[IntArray], list[NDArray[np.floating]]]:
    """Return, for each query, the positions and similarities of its k best candidates.

    Exact, most similar first, equal similarities in pool order. A row is shorter than k where
    fewer candidates are not excluded.
    """
    import numpy as np

    assert similarities_QP.shape == excluded_QP.shape
    assert not np.isnan(similarities_QP).any(), "a similarity is NaN"
    indices, values = [], []
    for row_P, excluded_P in zip(similarities_QP, excluded_QP, strict=True):
        eligible = np.flatnonzero(~excluded_P)
        if len(eligible) > k > 0:
            # All that reach the k-th best value stay in, so that ties are broken by order below.
            scores = row_P[eligible]
            threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
            eligible = eligible[scores >= threshold]
        best = eligible[np.argsort(-row_P[eligible], kind="stable")][:k]
        indices.append(best)
        values.append(row_P[best])
    return indices, values


def require_pool(task: str, tasks: Collection[str]) -> None:
    """Raise `TaskError` where a task is not among those that have pool examples."""
    if task not in tasks:
        raise TaskError(
            f"task {task!r} has queries but not one example in the pool; it has examples of "
            f"{', '.join(sorted(tasks)) or 'no task'}. Raise max_pool, or leave the task out."
        )


def require_candidates(query: Example, num_found: int) -> None:
    """Raise `DataError` where nothing is left for a query after exclusion."""
    if num_found == 0:
        raise DataError(
            f"query {query.example_id!r} of task {query.task!r} has no candidate: every pool "
            "example is the query itself or has the same normalised query. Add examples to the "
            "pool, or leave the query out."
        )
