"""BM25 candidates: the first round has no trained retriever yet (paper, section 3.1).

Texts are tokenised alike on every machine: lower case, then every run of letters, digits and
underscores is a word; no stop words, no stemming. A query is its `query` text, a document the
pool example's `text` (query and answer). A word that a query repeats counts as often.

bm25s is the engine: it scores every word of every document once, when it indexes. rank-bm25, which
scores at each query, is there as the reference. Shape suffix: P pool examples.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

from exemplar.errors import ConfigError
from exemplar.records import Example
from exemplar.retrieval.members import Members, Proposals
from exemplar.retrieval.ranking import best, by_task, require_pool

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Engine = Literal["bm25s", "rank-bm25"]
Method = Literal["lucene", "robertson", "atire", "bm25l", "bm25+"]

METHODS: dict[Engine, tuple[Method, ...]] = {
    "bm25s": ("lucene", "robertson", "atire", "bm25l", "bm25+"),
    "rank-bm25": ("robertson", "bm25+"),
}
"""The variants of BM25 that an engine computes (rank-bm25's BM25L is not the published one)."""

_DELTA = 0.5  # of bm25l and bm25+
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
    engine: Engine = "bm25s",
    method: Method = "lucene",
    k1: float = 1.5,
    b: float = 0.75,
    progress: str | None = None,
) -> Proposals:
    """Return the k best candidates of each query by BM25, in the order of the queries.

    `scope` "task" searches the pool of the query's own task, one index a task; "pool" searches
    everything, as the paper does. The query itself and examples with the same normalised query
    are left out; where fewer than k remain, all of them come. Equal scores keep pool order. One
    index is in memory at a time. Raises `TaskError` where a task has no pool, `DataError` where a
    query has no candidate and `ConfigError` where the engine lacks the method or is not installed.
    """
    from tqdm.auto import tqdm

    if method not in METHODS.get(engine, ()):
        raise ConfigError(
            f"BM25 method {method!r} of engine {engine!r}: expected one of "
            + "; ".join(f"{', '.join(known)} with {name}" for name, known in METHODS.items())
            + "."
        )
    pools = by_task(pool) if scope == "task" else {"": pool}
    rows: dict[str, list[int]] = {}
    for row, query in enumerate(queries):
        rows.setdefault(query.task if scope == "task" else "", []).append(row)
    found = Proposals(queries)
    with tqdm(total=len(queries), desc=progress, disable=progress is None, unit=" queries") as bar:
        for task, of_task in rows.items():
            require_pool(task, pools)
            members = Members()
            documents = tqdm(
                members.noting(pools[task]),
                desc=progress and f"{progress}: indexing {task or 'the pool'}",
                total=len(pools[task]),
                disable=progress is None,
                leave=False,
                unit=" examples",
            )
            index = _index(engine, (words(example.text) for example in documents), method, k1, b)
            for row in of_task:
                scores_P = index.scores(words(queries[row].query))
                places, values = best(scores_P, members.excluded(queries[row]), k)
                found.put(row, members.names, places.tolist(), values.tolist())
                bar.update()
    return found


class Index(Protocol):
    """Documents that are scored for a query."""

    def scores(self, query: Sequence[str]) -> NDArray[np.floating]:
        """Return the scores (P,) of all documents for a query's words."""
        ...


def _index(
    engine: Engine, documents: Iterable[list[str]], method: Method, k1: float, b: float
) -> Index:
    if engine == "rank-bm25":
        return _RankBm25(list(documents), method, k1, b)
    return _Bm25s(_Documents(documents), method, k1, b)


class _Documents:
    """Documents as numbers of words: 4 bytes a word, not 60."""

    def __init__(self, documents: Iterable[list[str]]) -> None:
        self.vocabulary: dict[str, int] = {}
        self._numbers, self._ends = array("i"), array("Q", [0])
        number = self.vocabulary.setdefault
        for document in documents:
            self._numbers.extend([number(word, len(self.vocabulary)) for word in document])
            self._ends.append(len(self._numbers))

    @property
    def num_words(self) -> int:
        return len(self._numbers)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __iter__(self) -> Iterator[array[int]]:
        for place in range(len(self)):
            yield self._numbers[self._ends[place] : self._ends[place + 1]]


class _Bm25s:
    def __init__(self, documents: _Documents, method: Method, k1: float, b: float) -> None:
        import bm25s

        self._size, self._vocabulary = len(documents), documents.vocabulary
        self._engine = bm25s.BM25(method=method, k1=k1, b=b, delta=_DELTA, csc_backend="auto")
        if documents.num_words:  # bm25s divides by the mean length
            self._engine.scores = self._engine.build_index_from_ids(
                unique_token_ids=range(len(self._vocabulary)),
                corpus_token_ids=documents,
                show_progress=False,
            )

    def scores(self, query: Sequence[str]) -> NDArray[np.floating]:
        import numpy as np

        ids = [self._vocabulary[word] for word in query if word in self._vocabulary]
        if not ids:
            return np.zeros(self._size, dtype=np.float32)
        scores_P: NDArray[np.floating] = self._engine.get_scores_from_ids(ids)
        return scores_P


class _RankBm25:
    def __init__(self, documents: list[list[str]], method: Method, k1: float, b: float) -> None:
        try:
            import rank_bm25
        except ImportError:
            raise ConfigError(
                "engine 'rank-bm25' needs the package of that name: `pip install "
                "'exemplar[rank-bm25]'`, or choose the engine 'bm25s'."
            ) from None
        self._size = len(documents)
        self._engine = None
        if any(documents):  # it divides by the mean length too
            # `epsilon` would raise words that more than half of the documents hold; bm25s gives
            # them 0, as Robertson and Sparck Jones do.
            self._engine = (
                rank_bm25.BM25Okapi(documents, k1=k1, b=b, epsilon=0.0)
                if method == "robertson"
                else rank_bm25.BM25Plus(documents, k1=k1, b=b, delta=_DELTA)
            )

    def scores(self, query: Sequence[str]) -> NDArray[np.floating]:
        import numpy as np

        if self._engine is None:
            return np.zeros(self._size)
        scores_P: NDArray[np.floating] = self._engine.get_scores(query)
        return scores_P
