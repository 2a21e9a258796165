"""Dense candidates: the pool examples whose embeddings are nearest to a query's.

Shape suffixes: Q queries, D embedding size.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

from exemplar.records import Example
from exemplar.retrieval.members import Proposals
from exemplar.retrieval.nearest import Ranked
from exemplar.retrieval.pool_index import PoolIndex, TextEncoder

_QUERIES_AT_ONCE = 1024
_RECALL_QUERIES = 200  # a task, to measure what an approximate search misses


def dense_candidates(
    queries: Sequence[Example],
    pool: Sequence[Example] | PoolIndex,
    encoder: TextEncoder,
    *,
    k: int,
    scope: Literal["task", "pool"] = "task",
    progress: str | None = None,
) -> Proposals:
    """Return the k most similar pool examples of each query, in the order of the queries.

    Queries are embedded by their `query`, pool examples by their `text` (paper, section 3.3). Give
    a `PoolIndex` in place of the pool to embed it once for several searches. Scope, exclusions and
    errors are those of `bm25_candidates`. Where the index is approximate, the result's `recall`
    says which share of the true candidates it found, by task, on a sample of the queries.
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
    found = Proposals(queries, index)
    with tqdm(total=len(queries), desc=progress, disable=progress is None) as bar:
        for task, of_task in rows.items():
            for start in range(0, len(of_task), _QUERIES_AT_ONCE):
                members = of_task[start : start + _QUERIES_AT_ONCE]
                excluded = [index.members.excluded(queries[row]) for row in members]
                hits = index.places(embeddings_QD[members], k=k, task=task, excluded=excluded)
                for row, (places, similarities) in zip(members, hits, strict=True):
                    found.put(row, index.members.names, places, similarities)
                bar.update(len(members))
            if index.approximated and task in (None, *index.approximated):
                sample = of_task[:: max(1, len(of_task) // _RECALL_QUERIES)][:_RECALL_QUERIES]
                excluded = [index.members.excluded(queries[row]) for row in sample]
                found.recall[task or "all tasks"] = _recall(
                    index.places(
                        embeddings_QD[sample], k=k, task=task, excluded=excluded, exact=True
                    ),
                    [found.places(row) for row in sample],
                )
    return found


def _recall(true: Sequence[Ranked], found: Sequence[Collection[int]]) -> float:
    """Return the share of the true places that were found, over all queries."""
    hits = sum(len({*places} & {*given}) for (places, _), given in zip(true, found, strict=True))
    return hits / sum(len(places) for places, _ in true)
