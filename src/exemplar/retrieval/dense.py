"""Dense candidates: exact search by inner product over embeddings, on FAISS.

Shape suffixes: Q queries, P pool examples, D embedding size.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from exemplar.data.io import atomic_folder, fingerprint, read_records, write_records
from exemplar.errors import DataError
from exemplar.records import Candidates, Example
from exemplar.retrieval.ranking import by_task, excluder, require_candidates, require_pool

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_INDEX, _POOL = "index.faiss", "pool.parquet"
# Similarities are compared to six decimals: the last bits of a float32 product depend on the
# block it was computed in, and would order equal texts differently from machine to machine.
_DECIMALS = 6
_QUERIES_AT_ONCE = 1024


class TextEncoder(Protocol):
    """What turns texts into unit vectors: `retrieval.encoder.Encoder`, or a stand-in in tests."""

    def encode(self, texts: Sequence[str], *, progress: str | None = None) -> NDArray[np.float32]:
        """Return float32 unit vectors (N, D), in the order of the texts."""
        ...


class Hit(NamedTuple):
    """A pool example that was found, and its cosine similarity with the query."""

    example: Example
    similarity: float


class PoolIndex:
    """The embedded pool: searched exactly, within one task or as a whole.

    `pool` is grouped by task (a task's examples lie together, in the order given), so that a
    task's search reads its own stretch of one FAISS index and nothing else.
    """

    def __init__(self, pool: Sequence[Example], embeddings_PD: NDArray[np.float32]):
        import faiss
        import numpy as np

        if len(pool) != len(embeddings_PD) or not pool:
            raise DataError(
                f"a pool index needs one embedding an example and at least one example, got "
                f"{len(pool)} examples and {len(embeddings_PD)} embeddings."
            )
        position = {task: number for number, task in enumerate(by_task(pool))}
        order = sorted(range(len(pool)), key=lambda row: position[pool[row].task])
        if order != list(range(len(pool))):  # a copy of all embeddings, only where it is needed
            embeddings_PD = embeddings_PD[order]
        index = faiss.IndexFlatIP(embeddings_PD.shape[1])
        index.add(np.ascontiguousarray(embeddings_PD, dtype=np.float32))
        self._set([pool[row] for row in order], index)

    def _set(self, pool: list[Example], index: Any) -> None:
        self.pool = pool
        self._index = index
        self._spans: dict[str, tuple[int, int]] = {}
        start = 0
        for task, examples in by_task(pool).items():
            self._spans[task] = (start, start + len(examples))
            start += len(examples)

    @classmethod
    def build(
        cls, pool: Sequence[Example], encoder: TextEncoder, *, progress: str | None = None
    ) -> PoolIndex:
        """Embed the texts of a pool and index them."""
        return cls(pool, encoder.encode([example.text for example in pool], progress=progress))

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of the pool."""
        return tuple(self._spans)

    @cached_property
    def excluded(self) -> Callable[[Example], set[int]]:
        """From a query to the positions in `pool` that it may not see (`ranking.excluder`)."""
        return excluder(self.pool)

    def search(
        self,
        embeddings_QD: NDArray[np.float32],
        *,
        k: int,
        task: str | None = None,
        excluded: Sequence[Collection[int]] | None = None,
    ) -> list[list[Hit]]:
        """Return the k most similar examples of each query, most similar first.

        `task` None searches the whole pool. `excluded[i]` holds positions in `pool` that query i
        may not see. Exact; equal similarities (to six decimals) keep pool order. Fewer than k
        come where fewer are eligible. Raises `TaskError` for a task without pool examples.
        """
        import faiss

        if task is not None:
            require_pool(task, self._spans)
        start, stop = (0, len(self.pool)) if task is None else self._spans[task]
        parameters = faiss.SearchParameters(sel=faiss.IDSelectorRange(start, stop))  # type: ignore[call-arg]
        hidden = excluded or [()] * len(embeddings_QD)
        most = max((len(positions) for positions in hidden), default=0)
        results: list[list[Hit]] = [[] for _ in hidden]
        pending, fetch = list(range(len(hidden))), k + most + 1
        while pending:
            fetch = min(fetch, stop - start)
            values_QF, positions_QF = self._index.search(
                embeddings_QD[pending], fetch, params=parameters
            )
            values_QF = values_QF.astype("float64").round(_DECIMALS)
            undecided = []
            for row, values_F, positions_F in zip(pending, values_QF, positions_QF, strict=True):
                found = sorted(
                    (-value, position)
                    for value, position in zip(values_F.tolist(), positions_F.tolist(), strict=True)
                    if position not in hidden[row]
                )
                # A tie that reaches the end of what was fetched may have more members beyond it.
                if len(found) > k and found[k - 1][0] == found[-1][0] and fetch < stop - start:
                    undecided.append(row)
                results[row] = [Hit(self.pool[at], -negated) for negated, at in found[:k]]
            pending, fetch = undecided, fetch * 4
        return results

    def save(self, folder: Path, *, made_from: Mapping[str, str] | None = None) -> None:
        """Write the FAISS index and the pool, bound to each other by a fingerprint.

        `made_from`: fingerprints of what both come from, kept in pool.parquet.
        """
        import faiss

        with atomic_folder(folder) as path:
            faiss.write_index(self._index, str(path / _INDEX))
            sealed = {**(made_from or {}), "index": fingerprint(path / _INDEX)}
            write_records(path / _POOL, Example, self.pool, made_from=sealed)

    @classmethod
    def load(cls, folder: Path) -> PoolIndex:
        """Read what `save` wrote. Raises `DataError` where the two files do not belong together."""
        import faiss

        made_from = {"index": fingerprint(folder / _INDEX)}
        pool = read_records(folder / _POOL, Example, made_from=made_from)
        loaded = cls.__new__(cls)
        loaded._set(pool, faiss.read_index(str(folder / _INDEX)))
        return loaded


def dense_candidates(
    queries: Sequence[Example],
    pool: Sequence[Example] | PoolIndex,
    encoder: TextEncoder,
    *,
    k: int,
    scope: Literal["task", "pool"] = "task",
    progress: str | None = None,
) -> list[Candidates]:
    """Return the k most similar pool examples of each query, in the order of the queries.

    Queries are embedded by their `query`, pool examples by their `text` (paper, section 3.3). Give
    a `PoolIndex` in place of the pool to embed it once for several searches. Scope, exclusions and
    errors are those of `bm25_candidates`.
    """
    from tqdm.auto import tqdm

    index = pool
    if not isinstance(index, PoolIndex):
        index = PoolIndex.build(index, encoder, progress=progress and f"{progress}: pool")
    embeddings_QD = encoder.encode(
        [query.query for query in queries], progress=progress and f"{progress}: queries"
    )
    rows: dict[str | None, list[int]] = {}
    for row, query in enumerate(queries):
        rows.setdefault(query.task if scope == "task" else None, []).append(row)
    found: dict[int, Candidates] = {}
    with tqdm(total=len(queries), desc=progress, disable=progress is None) as bar:
        for task, of_task in rows.items():
            for start in range(0, len(of_task), _QUERIES_AT_ONCE):
                members = of_task[start : start + _QUERIES_AT_ONCE]
                excluded = [index.excluded(queries[row]) for row in members]
                hits = index.search(embeddings_QD[members], k=k, task=task, excluded=excluded)
                for row, row_hits in zip(members, hits, strict=True):
                    found[row] = _candidates(queries[row], row_hits)
                bar.update(len(members))
    return [found[row] for row in range(len(queries))]


def _candidates(query: Example, hits: Sequence[Hit]) -> Candidates:
    require_candidates(query, len(hits))
    return Candidates(
        query_id=query.example_id,
        candidate_ids=tuple(hit.example.example_id for hit in hits),
        similarities=tuple(hit.similarity for hit in hits),
    )
