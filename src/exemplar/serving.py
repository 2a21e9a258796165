"""A retriever in use: a query in, demonstrations and the assembled prompt out.

The same `Retriever` answers in a Python process, behind `mlflow models serve` (through
mlflow/served_model.py) and on the command line. What it is loaded from: `bundle.py`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from exemplar import prompts
from exemplar.bundle import DEFAULT_K
from exemplar.data.stored import StoredExamples
from exemplar.errors import ConfigError, ModelError, TaskError
from exemplar.records import Example

if TYPE_CHECKING:
    import pandas as pd

    from exemplar.retrieval.encoder import Encoder
    from exemplar.retrieval.pool_index import PoolIndex
    from exemplar.tracking import Store


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A pool example chosen for a query, with its cosine similarity to it."""

    example: Example
    similarity: float


@dataclass(frozen=True, slots=True)
class Selection:
    """A query with its demonstrations, the nearest first."""

    query: str
    demonstrations: tuple[Demonstration, ...]

    def __iter__(self) -> Iterator[Demonstration]:
        return iter(self.demonstrations)

    def __len__(self) -> int:
        return len(self.demonstrations)

    def prompt(
        self, *, count_tokens: Callable[[str], int] | None = None, budget: int | None = None
    ) -> str:
        """Return the prompt, the nearest demonstration last.

        With `count_tokens` and `budget`, the farthest demonstrations are left out until it fits;
        `PromptError` where the query alone does not.
        """
        texts = [demonstration.example.text for demonstration in self.demonstrations]
        if count_tokens is None or budget is None:
            return prompts.assemble(texts, self.query)
        return prompts.fit(texts, self.query, count_tokens=count_tokens, budget=budget)[0]


class Retriever:
    """An encoder and the embedded pool that it searches."""

    def __init__(self, encoder: Encoder, index: PoolIndex):
        self._encoder = encoder
        self._index = index
        self._members = index.members  # read now, so that the first query is as quick as others
        self._sizes = index.sizes

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
            from exemplar import registry, tracking

            if store is None:
                store = tracking.open_store(Path.cwd(), create=False)
            with tempfile.TemporaryDirectory(prefix="exemplar-") as temporary:
                return cls.load(registry.fetch(store, str(reference), Path(temporary)))
        folder = Path(reference)
        if (folder / "MLmodel").is_file():
            folder = folder / "artifacts" / "bundle"
        from exemplar.retrieval.encoder import Encoder
        from exemplar.retrieval.pool_index import PoolIndex

        if (folder / "index").is_dir() and (folder / "encoder").is_dir():
            return cls(Encoder.load(folder / "encoder"), PoolIndex.load(folder / "index"))
        if pool is None:
            raise ModelError(
                f"{reference} is neither a bundle (encoder/ and index/) nor an MLflow model. To "
                "use an encoder alone, give the pool to search too (a Parquet file of examples)."
            )
        encoder = Encoder.load(reference)
        return cls(encoder, PoolIndex.build(StoredExamples(pool), encoder, progress=progress))

    @property
    def tasks(self) -> list[str]:
        """The tasks of the pool, in alphabetical order."""
        return sorted(self._sizes)

    def select(self, query: str, *, task: str | None = None, k: int = DEFAULT_K) -> Selection:
        """Return the `k` pool examples nearest to `query`, among those of `task` if it is given.

        A pool example with the same query is never shown: it would give the answer away. Raises
        `TaskError` for an unknown task and `ConfigError` for an empty query or a `k` below 1 or
        above the examples there are.
        """
        return self.select_many([query], [task], k=k)[0]

    def select_many(
        self, queries: Sequence[str], tasks: Sequence[str | None], *, k: int = DEFAULT_K
    ) -> list[Selection]:
        """Return a selection for each query; the queries are embedded together."""
        for query, task in zip(queries, tasks, strict=True):
            self._check(query, task, k)
        if not queries:
            return []
        embeddings_ND = self._encoder.encode(list(queries))
        rows: dict[str | None, list[int]] = {}
        for row, task in enumerate(tasks):
            rows.setdefault(task, []).append(row)
        found: dict[int, tuple[Demonstration, ...]] = {}
        for task, members in rows.items():
            unseen = [Example("", task or "", queries[row], ("",)) for row in members]
            hits = self._index.search(
                embeddings_ND[members],
                k=k,
                task=task,
                excluded=[self._members.excluded(query) for query in unseen],
            )
            for row, row_hits in zip(members, hits, strict=True):
                found[row] = tuple(Demonstration(hit.example, hit.similarity) for hit in row_hits)
        return [Selection(query, found[row]) for row, query in enumerate(queries)]

    def _check(self, query: str, task: str | None, k: int) -> None:
        if not isinstance(query, str) or not query.strip():
            raise ConfigError(f"The query is {query!r}, expected a text that is not empty.")
        if task is not None and task not in self._sizes:
            raise TaskError(
                f"Unknown task {task!r}: the pool holds {', '.join(self.tasks)}. Name one of "
                "these, or none to search them all."
            )
        available = self._sizes[task] if task is not None else sum(self._sizes.values())
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= available:
            where = "the pool" if task is None else f"task {task!r}"
            raise ConfigError(
                f"k is {k!r}, expected a whole number from 1 to {available}, as many as {where} "
                "has examples."
            )


def answer(retriever: Retriever, frame: pd.DataFrame, *, k: int) -> pd.DataFrame:
    """Answer a table of queries, as the served model does.

    Columns in: query and, optionally, task (empty or missing: the whole pool). Columns out, one row
    a query: demonstrations (nearest first; example_id, task, query, answer, similarity) and prompt.
    """
    import pandas as pd

    tasks = frame["task"] if "task" in frame else [None] * len(frame)
    given = [task if isinstance(task, str) and task else None for task in tasks]
    selections = retriever.select_many(list(frame["query"]), given, k=k)
    return pd.DataFrame(
        {
            "demonstrations": [[_plain(item) for item in selection] for selection in selections],
            "prompt": [selection.prompt() for selection in selections],
        }
    )


def _plain(item: Demonstration) -> dict[str, str | float]:
    return {
        "example_id": item.example.example_id,
        "task": item.example.task,
        "query": item.example.query,
        "answer": item.example.answer,
        "similarity": item.similarity,
    }
