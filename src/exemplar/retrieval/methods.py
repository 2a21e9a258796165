"""The retrieval methods by name: what a retriever and each baseline propose for a query."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from exemplar.records import Candidates, Example
from exemplar.retrieval import baselines, bm25
from exemplar.retrieval.demonstrations import Rules, demonstrations
from exemplar.retrieval.members import Proposals

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from exemplar.retrieval.encoder import Encoder


Name = Literal["zero_shot", "random", "kmeans", "bm25", "dense"]


class _Prefixed:
    """An encoder that sets the same words before every text."""

    def __init__(self, encoder: Encoder, prefix: str) -> None:
        self._encoder, self._prefix, self.device = encoder, prefix, encoder.device

    def encode(self, texts: Sequence[str], *, progress: str | None = None) -> NDArray[np.float32]:
        return self._encoder.encode([self._prefix + text for text in texts], progress=progress)


@dataclass(frozen=True)
class Method:
    """One way to propose pool examples; `dense` and `kmeans` need an encoder.

    The prefixes stand before what is embedded, queries and pool examples, for encoders that were
    trained so.
    `approximate_above` and `probes` are those of `PoolIndex.build`, `bm25_options` those of
    `bm25_candidates` (engine, method, k1, b).
    """

    name: Name
    encoder: str | Path | None = None
    query_prefix: str = ""
    passage_prefix: str = ""
    max_length: int = 256
    scope: Literal["task", "pool"] = "task"
    seed: int = 0
    dtype: str = "auto"
    approximate_above: int | None = None
    probes: int = 32
    bm25_options: Mapping[str, Any] = field(default_factory=dict)


class Request(NamedTuple):
    """Queries, and how many pool examples each gets: the nearest, or those that `rules` choose.

    The rules are for methods that rank the pool, bm25 and dense.
    """

    queries: Sequence[Example]
    k: int
    rules: Rules = Rules()

    @property
    def num_candidates(self) -> int:
        """How many of the nearest the rules choose from."""
        return self.rules.num_candidates(self.k)


def propose(
    method: Method,
    requests: Sequence[Request],
    pool: Sequence[Example],
    *,
    labelled_tasks: Collection[str] = (),
    index_folder: Path | None = None,
    made_from: Mapping[str, str] | None = None,
    progress: str | None = None,
) -> list[Sequence[Candidates]]:
    """Answer several requests over one pool, which is embedded once.

    The answers of `labelled_tasks` are labels. `dense` keeps the embedded pool in `index_folder` if
    it is given, sealed by `made_from`.
    """
    if method.name == "zero_shot":
        return [[Candidates(query.example_id, (), ()) for query in one.queries] for one in requests]
    if method.name == "random":
        return [
            baselines.random_candidates(one.queries, pool, k=one.k, seed=method.seed)
            for one in requests
        ]
    if method.name == "kmeans":
        return _by_clusters(method, requests, pool, progress)
    if method.name == "bm25":
        ranked = _by_words(method, requests, pool, progress)
    else:
        ranked = _by_embeddings(method, requests, pool, index_folder, made_from, progress)
    return _chosen(requests, ranked, pool, labelled_tasks, progress)


def _by_words(
    method: Method, requests: Sequence[Request], pool: Sequence[Example], progress: str | None
) -> list[Proposals]:
    return [
        bm25.bm25_candidates(
            one.queries,
            pool,
            k=one.num_candidates,
            scope=method.scope,
            progress=progress,
            **method.bm25_options,
        )
        for one in requests
    ]


def _by_clusters(
    method: Method, requests: Sequence[Request], pool: Sequence[Example], progress: str | None
) -> list[Sequence[Candidates]]:
    _, of_pool = _encoders(method)
    return [
        baselines.kmeans_candidates(
            one.queries, pool, of_pool, k=one.k, seed=method.seed, progress=progress
        )
        for one in requests
    ]


def _by_embeddings(
    method: Method,
    requests: Sequence[Request],
    pool: Sequence[Example],
    index_folder: Path | None,
    made_from: Mapping[str, str] | None,
    progress: str | None,
) -> list[Proposals]:
    from exemplar.retrieval import dense  # here alone: torch takes seconds, which bm25 can spare
    from exemplar.retrieval.pool_index import PoolIndex

    of_queries, of_pool = _encoders(method)
    index = PoolIndex.build(
        pool,
        of_pool,
        approximate_above=method.approximate_above,
        probes=method.probes,
        progress=progress and f"{progress}: pool",
    )
    if index_folder is not None:
        index.save(index_folder, made_from=made_from)
    return [
        dense.dense_candidates(
            one.queries,
            index,
            of_queries,
            k=one.num_candidates,
            scope=method.scope,
            progress=progress,
        )
        for one in requests
    ]


def _encoders(method: Method) -> tuple[_Prefixed, _Prefixed]:
    """Return the method's encoder as it is for queries and for pool examples."""
    from exemplar.retrieval.encoder import Encoder

    assert method.encoder is not None, f"{method.name} needs an encoder"
    loaded = Encoder.load(method.encoder, max_length=method.max_length, dtype=method.dtype)
    encoder = loaded.for_inference()
    return _Prefixed(encoder, method.query_prefix), _Prefixed(encoder, method.passage_prefix)


def _chosen(
    requests: Sequence[Request],
    ranked: Sequence[Proposals],
    pool: Sequence[Example],
    labelled_tasks: Collection[str],
    progress: str | None,
) -> list[Sequence[Candidates]]:
    """Return what each request's rules choose of its candidates."""
    return [
        demonstrations(
            proposed,
            pool,
            one.rules,
            num_shots=one.k,
            labelled_tasks=labelled_tasks,
            progress=progress and f"{progress}: choosing",
        )
        if one.rules.active
        else proposed
        for one, proposed in zip(requests, ranked, strict=True)
    ]


def recalls(found: Sequence[Sequence[Candidates]]) -> dict[str, float]:
    """Return the recall of every task that was searched approximately, the lowest of all requests.

    Empty where the search was exact.
    """
    lowest: dict[str, float] = {}
    for proposed in found:
        if isinstance(proposed, Proposals):
            for task, share in proposed.recall.items():
                name = f"recall, {task}"
                lowest[name] = min(round(share, 4), lowest.get(name, 1.0))
    return lowest
