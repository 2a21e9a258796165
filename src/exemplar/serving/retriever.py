"""A retriever in use: a query in, demonstrations and the assembled prompt out.

The same `Retriever` answers in a Python process, behind `exemplar serve` (`server/`), behind
`mlflow models serve` (through mlflow/served_model.py) and on the command line. What it is loaded
from: `registry/bundle.py`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exemplar.data.stored import StoredExamples, where
from exemplar.errors import ConfigError, ModelError, TaskError
from exemplar.registry.bundle import SearchSettings
from exemplar.retrieval.demonstrations import Traits
from exemplar.retrieval.demonstrations import select as select_among
from exemplar.retrieval.ranking import normalise
from exemplar.serving.query import Demonstration, Filters, Query, Selection

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from exemplar.retrieval.encoder import Encoder
    from exemplar.retrieval.pool_index import Hit, PoolIndex
    from exemplar.tracking.store import Store

_NEAREST = SearchSettings()
_NO_FILTERS = Filters()
_MASKS = 16  # masks of recent filters that are kept, a byte an example each


class Retriever:
    """An encoder and the embedded pool that it searches.

    `settings`: how it chose demonstrations when it was evaluated; it goes on to do so.
    """

    def __init__(self, encoder: Encoder, index: PoolIndex, settings: SearchSettings = _NEAREST):
        self.settings = settings
        self._encoder = encoder
        self._index = index
        self._sizes = index.sizes
        self._masks: dict[Filters, NDArray[np.bool_]] = {}

    @classmethod
    def load(
        cls,
        reference: str | Path,
        *,
        pool: Path | None = None,
        store: Store | None = None,
        progress: str | None = None,
    ) -> Retriever:
        """Load models:/<name>@<alias>, models:/<name>/<version>, or a folder.

        The folder is a bundle, a downloaded MLflow model, or an encoder; for an encoder alone give
        `pool`, a Parquet file of examples, which is embedded now. `store` defaults to
        MLFLOW_TRACKING_URI or ./mlflow.db. Raises `RegistryError` for an unknown model, version or
        alias and `ModelError` for a folder that is none of these.
        """
        if str(reference).startswith("models:/"):
            from exemplar.registry import versions
            from exemplar.tracking.store import open_store

            if store is None:
                store = open_store(Path.cwd(), create=False)
            with tempfile.TemporaryDirectory(prefix="exemplar-") as temporary:
                return cls.load(versions.fetch(store, str(reference), Path(temporary)))
        folder = Path(reference)
        if (folder / "MLmodel").is_file():
            folder = folder / "artifacts" / "bundle"
        from exemplar.retrieval.encoder import Encoder
        from exemplar.retrieval.pool_index import PoolIndex

        if (folder / "index").is_dir() and (folder / "encoder").is_dir():
            settings = SearchSettings.of_bundle(folder)
            index = PoolIndex.load(folder / "index", texts_in_memory=True)
            encoder = Encoder.load(folder / "encoder", max_length=settings.max_length)
            return cls(encoder.for_inference(), index, settings)
        if pool is None:
            raise ModelError(
                f"{reference} is neither a bundle (encoder/ and index/) nor an MLflow model. To "
                "use an encoder alone, give the pool to search too (a Parquet file of examples)."
            )
        encoder = Encoder.load(reference).for_inference()
        examples = StoredExamples(pool).held()
        return cls(encoder, PoolIndex.build(examples, encoder, progress=progress))

    @property
    def tasks(self) -> list[str]:
        """The tasks of the pool, in alphabetical order."""
        return sorted(self._sizes)

    @property
    def sizes(self) -> dict[str, int]:
        """The pool examples of each task, in alphabetical order."""
        return {task: self._sizes[task] for task in self.tasks}

    def select(
        self,
        query: str,
        *,
        task: str | None = None,
        k: int | None = None,
        filters: Filters = _NO_FILTERS,
    ) -> Selection:
        """Return the `k` pool examples nearest to `query`, among those of `task` if it is given.

        `k` None: as many as in the evaluation. Where `settings` say so, others than the nearest
        come, or in another order. A pool example with the same query is never shown: it would give
        the answer away. Fewer than `k` come only where that, `filters` or the settings leave fewer.
        Raises `TaskError` for an unknown task and `ConfigError` for an empty query or a `k` below 1
        or above the examples there are.
        """
        return self.answer([Query(query, task, k, filters)])[0]

    def select_many(
        self, queries: Sequence[str], tasks: Sequence[str | None], *, k: int | None = None
    ) -> list[Selection]:
        """Return a selection for each query; the queries are embedded together."""
        return self.answer([Query(q, t, k) for q, t in zip(queries, tasks, strict=True)])

    def answer(self, queries: Sequence[Query]) -> list[Selection]:
        """Return a selection for each query, each with its own task, `k` and filters.

        Queries are embedded together, and those of one scope searched together. Raises as `select`.
        """
        for query in queries:
            self.check(query)
        if not queries:
            return []
        embeddings_QD = self._encoder.encode([query.text for query in queries])
        scopes: dict[tuple[str | None, Filters], list[int]] = {}
        for row, query in enumerate(queries):
            scopes.setdefault((query.task, _scope(query.filters)), []).append(row)
        found: dict[int, tuple[Demonstration, ...]] = {}
        for (task, scope), rows in scopes.items():
            mask_P = None if scope == _NO_FILTERS else self._mask(scope)
            members = [queries[row] for row in rows]
            counts = [self.count(query) for query in members]
            hits = self._nearest(members, counts, embeddings_QD[rows], task, mask_P)
            for row, k, row_hits in zip(rows, counts, hits, strict=True):
                found[row] = self._chosen(row_hits, k, queries[row].filters.min_similarity)
        return [Selection(query.text, found[row]) for row, query in enumerate(queries)]

    def _nearest(
        self,
        queries: Sequence[Query],
        counts: Sequence[int],
        embeddings_QD: NDArray[np.float32],
        task: str | None,
        mask_P: NDArray[np.bool_] | None,
    ) -> list[list[Hit]]:
        """Return what `counts` demonstrations are chosen from, the nearest first.

        What a query may not see is left out of what was found, and the search goes farther where
        that is too much: a table of all normalised queries would take a large pool seconds and
        gigabytes.
        """
        results: list[list[Hit]] = [[] for _ in queries]
        hidden = [(normalise(q.text), frozenset(q.filters.exclude_ids)) for q in queries]
        wanted = [self.settings.rules.num_candidates(count) for count in counts]
        pending = list(range(len(queries)))
        fetch = 1 + max(
            most + min(len(ids), most) for most, (_, ids) in zip(wanted, hidden, strict=True)
        )
        while pending:
            found = self._index.search(embeddings_QD[pending], k=fetch, task=task, allowed_P=mask_P)
            short = []
            for row, hits in zip(pending, found, strict=True):
                text, ids = hidden[row]
                kept = [
                    hit
                    for hit in hits
                    if hit.example.example_id not in ids and normalise(hit.example.query) != text
                ]
                if len(kept) < wanted[row] and len(hits) == fetch:
                    short.append(row)
                results[row] = kept[: wanted[row]]
            pending, fetch = short, fetch * 4
        return results

    def _chosen(
        self, hits: Sequence[Hit], k: int, least: float | None
    ) -> tuple[Demonstration, ...]:
        """Choose among what was found, at least that similar, by the rules of the evaluation."""
        rules, labelled = self.settings.rules, self.settings.labelled_tasks
        hits = [hit for hit in hits if least is None or hit.similarity >= least]
        if rules.active:
            examples = [hit.example for hit in hits] if rules.by_traits else []
            picked = select_among(
                [hit.similarity for hit in hits],
                rules,
                k=k,
                traits=[
                    Traits(e.group, e.answer if e.task in labelled else None) for e in examples
                ],
                embeddings_ND=None
                if rules.mmr_lambda is None
                else self._index.vectors[[hit.place for hit in hits]],
            )
            hits = [hits[at] for at in picked]
        return tuple(Demonstration(hit.example, hit.similarity) for hit in hits[:k])

    def _mask(self, scope: Filters) -> NDArray[np.bool_]:
        """Return which pool examples (P,) the filters allow; recent ones are kept."""
        if scope not in self._masks:
            if len(self._masks) >= _MASKS:
                self._masks.clear()
            pool = self._index.pool
            mask_P = where(pool, "task", scope.tasks or self.tasks)
            if scope.groups:
                mask_P &= where(pool, "group", scope.groups)
            if scope.answers:
                mask_P &= where(pool, "answer", scope.answers)
            if scope.exclude_groups:
                mask_P &= ~where(pool, "group", scope.exclude_groups)
            self._masks[scope] = mask_P
        return self._masks[scope]

    def check(self, query: Query) -> None:
        """Raise `ConfigError` or `TaskError` where a query cannot be answered."""
        if not isinstance(query.text, str) or not query.text.strip():
            raise ConfigError(f"The query is {query.text!r}, expected a text that is not empty.")
        tasks = query.filters.tasks
        if query.task is not None and tasks:
            raise ConfigError(
                "Both task and filters.tasks are given; expected one of them: task searches one "
                "task, filters.tasks several."
            )
        tasks = tasks if query.task is None else (query.task,)
        for task in tasks:
            if task not in self._sizes:
                raise TaskError(
                    f"Unknown task {task!r}: the pool holds {', '.join(self.tasks)}. Name one of "
                    "these, or none to search them all."
                )
        k, available = query.k, self._available(query)
        if k is None:
            return
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= available:
            where = " and ".join(f"task {task!r}" for task in sorted(set(tasks))) or "the pool"
            raise ConfigError(
                f"k is {k!r}, expected a whole number from 1 to {available}, as many as {where} "
                "has examples."
            )

    def count(self, query: Query) -> int:
        """Return how many demonstrations a query gets at most: what it asks for, or the default."""
        return min(self.settings.num_shots, self._available(query)) if query.k is None else query.k

    def _available(self, query: Query) -> int:
        """Return how many examples the tasks of a query have."""
        tasks = query.filters.tasks if query.task is None else (query.task,)
        return sum(self._sizes[task] for task in set(tasks) or self._sizes)


def answer(
    retriever: Retriever, frame: pd.DataFrame, *, k: int | None = None, format: str = "text"
) -> pd.DataFrame:
    """Answer a table of queries, as the served model does.

    Columns in: query and, optionally, task, k, filters and format (empty or missing: the whole
    pool, `k`, none, `format`; `k` None: as many as in the evaluation). Columns out, one row a
    query: demonstrations (as in `Selection`; example_id, task, query, answer, similarity), prompt
    and messages, as the format asks for.
    """
    import pandas as pd

    from exemplar.serving import wire

    requests = [wire.from_row(row, k=k, format=format) for row in frame.to_dict("records")]
    selections = retriever.answer([wire.query_of(request) for request in requests])
    rows: list[dict[str, Any]] = [
        wire.answer_of(selection, request.format)
        for selection, request in zip(selections, requests, strict=True)
    ]
    columns = dict.fromkeys(name for row in rows for name in row)
    # None and objects: a missing text of pandas' own kinds becomes NaN, which no JSON reader takes.
    return pd.DataFrame({name: [row.get(name) for row in rows] for name in columns}, dtype=object)


def _scope(filters: Filters) -> Filters:
    """Return the filters less those that are applied to what was found."""
    return Filters(
        tasks=filters.tasks,
        groups=filters.groups,
        answers=filters.answers,
        exclude_groups=filters.exclude_groups,
    )
