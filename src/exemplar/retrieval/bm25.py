"""BM25 candidates, on bm25s: the first round has no trained retriever yet (paper, section 3.1).

Texts are tokenised alike on every machine: lower case, then every run of letters, digits and
underscores is a word; no stop words, no stemming. A query is its `query` text, a document the
pool example's `text` (query and answer). A word that a query repeats counts as often.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from exemplar.errors import ConfigError
from exemplar.records import Candidates, Example
from exemplar.retrieval.ranking import by_task, excluder, require_candidates, require_pool, top_k

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

METHODS = ("lucene", "robertson", "atire", "bm25l", "bm25+")
_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """Return the words of a text as BM25 sees them."""
    return _WORD.findall(text.lower())


def bm25_candidates(
    queries: Sequence[Example],
    pool: Sequence[Example],
    *,
    k: int,
    scope: Literal["task", "pool"] = "task",
    method: str = "lucene",
    k1: float = 1.5,
    b: float = 0.75,
    progress: str | None = None,
) -> list[Candidates]:
    """Return the k best candidates of each query by BM25, in the order of the queries.

    `scope` "task" searches the pool of the query's own task, one index a task; "pool" searches
    everything, as the paper does. The query itself and examples with the same normalised query
    are left out; where fewer than k remain, all of them come. Equal scores keep pool order.
    Raises `TaskError` where a task has no pool and `DataError` where a query has no candidate.
    """
    import numpy as np
    from tqdm.auto import tqdm

    if method not in METHODS:
        raise ConfigError(f"BM25 method {method!r}: expected one of {', '.join(METHODS)}.")
    pools = by_task(pool) if scope == "task" else {"": list(pool)}
    of_task = by_task(queries) if scope == "task" else {"": list(queries)}
    found: dict[str, Candidates] = {}
    with tqdm(total=len(queries), desc=progress, disable=progress is None) as bar:
        for task, task_queries in of_task.items():
            require_pool(task, pools)
            candidates = pools[task]
            index = _Index(candidates, method=method, k1=k1, b=b)
            excluded = excluder(candidates)
            for query in task_queries:
                mask_P = np.zeros(len(candidates), dtype=np.bool_)
                mask_P[sorted(excluded(query))] = True
                indices, values = top_k(index.scores(query.query)[None], mask_P[None], k)
                require_candidates(query, len(indices[0]))
                found[query.example_id] = Candidates(
                    query_id=query.example_id,
                    candidate_ids=tuple(candidates[i].example_id for i in indices[0]),
                    similarities=tuple(float(value) for value in values[0]),
                )
                bar.update()
    return [found[query.example_id] for query in queries]


class _Index:
    """A BM25 index over the texts of examples."""

    def __init__(self, examples: Sequence[Example], *, method: str, k1: float, b: float):
        import bm25s

        self._size = len(examples)
        self._engine = bm25s.BM25(method=method, k1=k1, b=b)
        tokens = [words(example.text) for example in examples]
        self._has_words = any(tokens)  # bm25s divides by the mean length
        if self._has_words:
            self._engine.index(tokens, show_progress=False)

    def scores(self, text: str) -> NDArray[np.floating]:
        """Return the BM25 scores (P,) of all documents; 0 where no word is shared."""
        import numpy as np

        known = self._engine.vocab_dict if self._has_words else {}
        ids = [known[word] for word in words(text) if word in known]
        if not ids:
            return np.zeros(self._size, dtype=np.float32)
        scores_P: NDArray[np.floating] = self._engine.get_scores_from_ids(ids)
        return scores_P
