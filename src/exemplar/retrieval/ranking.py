"""What every retriever shares: texts as they are compared, groups by task, and exact top-k.

Shape suffix: P pool examples.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from exemplar.data.stored import StoredExamples
from exemplar.errors import DataError, TaskError
from exemplar.records import Example

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    IntArray = NDArray[np.int64]


def normalise(text: str) -> str:
    """Return a text as it is compared: compatibility forms, case and white space made one."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def by_task(examples: Sequence[Example]) -> Mapping[str, Sequence[Example]]:
    """Group examples by task; tasks and examples keep the order in which they came."""
    if isinstance(examples, StoredExamples):
        return examples.by_task()
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.task, []).append(example)
    return groups


def best(
    scores_P: NDArray[np.floating], excluded: Collection[int], k: int
) -> tuple[IntArray, NDArray[np.floating]]:
    """Return the places and scores of the k best candidates that are not excluded.

    Exact, highest score first, equal scores in pool order. Fewer come where fewer are eligible.
    """
    import numpy as np

    assert not np.isnan(scores_P).any(), "a score is NaN"
    num_found = min(k, len(scores_P) - len(excluded))
    if num_found <= 0:
        return np.empty(0, dtype=np.int64), scores_P[:0]
    if excluded:
        scores_P = scores_P.copy()
        scores_P[list(excluded)] = -np.inf
    # As many blocks as results: their highest scores are that many, so the lowest of them bounds
    # the last result from below. A partition takes long on the many zeros that BM25 gives.
    width = len(scores_P) // num_found
    blocks = scores_P[: width * num_found].reshape(num_found, width)
    bound = blocks.max(axis=1).min()
    above = np.flatnonzero(scores_P > bound)
    places = above[np.argsort(-scores_P[above], kind="stable")][:num_found]
    if len(places) < num_found:
        equal = np.flatnonzero(scores_P == bound)[: num_found - len(places)]
        places = np.concatenate([places, equal])
    return places, scores_P[places]


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
