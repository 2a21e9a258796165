"""A retriever in use: a query in, demonstrations and the assembled prompt out.

The same `Retriever` answers in a Python process, behind `mlflow models serve` (through
mlflow/served_model.py) and on the command line. A bundle is the folder that it is loaded from:

    encoder/      the trained retriever, a sentence-transformers folder
    index/        the pool's embeddings and examples
    evaluation/   outcomes.parquet and metrics.json, which the promotion gate compares
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exemplar import prompts
from exemplar.data.io import read_records
from exemplar.errors import ConfigError, ModelError, TaskError
from exemplar.records import Example

if TYPE_CHECKING:
    import pandas as pd

    from exemplar.retrieval.dense import PoolIndex
    from exemplar.retrieval.encoder import Encoder
    from exemplar.tracking import Store

DEFAULT_K = 4
OUTCOMES = "artifacts/bundle/evaluation/outcomes.parquet"
"""Where a registered model keeps its outcomes."""

# The package exemplar itself is left out: it is installed from the project, and an index may hold
# something else under that name.
_REQUIREMENTS = ("mlflow", "torch", "transformers", "faiss-cpu", "numpy", "pyarrow")


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
        self._sizes: dict[str, int] = {}
        for example in index.pool:
            self._sizes[example.task] = self._sizes.get(example.task, 0) + 1

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
                store = tracking.connect(tracking.store_uri(Path.cwd()))
            with tempfile.TemporaryDirectory(prefix="exemplar-") as temporary:
                return cls.load(registry.fetch(store, str(reference), Path(temporary)))
        folder = Path(reference)
        if (folder / "MLmodel").is_file():
            folder = folder / "artifacts" / "bundle"
        from exemplar.retrieval.dense import PoolIndex
        from exemplar.retrieval.encoder import Encoder

        if (folder / "index").is_dir() and (folder / "encoder").is_dir():
            return cls(Encoder.load(folder / "encoder"), PoolIndex.load(folder / "index"))
        if pool is None:
            raise ModelError(
                f"{reference} is neither a bundle (encoder/ and index/) nor an MLflow model. To use "
                "an encoder alone, give the pool to search as well (a Parquet file of examples)."
            )
        encoder = Encoder.load(reference)
        examples = read_records(pool, Example)
        texts = [example.text for example in examples]
        return cls(encoder, PoolIndex(examples, encoder.encode(texts, progress=progress)))

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
        embeddings_ND = self._encoder.encode(list(queries))
        raise NotImplementedError(embeddings_ND)

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
                f"k is {k!r}, expected a whole number from 1 to {available}, the number of examples "
                f"in {where}."
            )
