"""The embedded pool: one matrix, searched exactly unless a task is very large.

Shape suffixes: Q queries, P pool examples, F fetched, D embedding size.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from exemplar.data.io import atomic_folder, fingerprint, write_records
from exemplar.data.stored import StoredExamples
from exemplar.errors import DataError
from exemplar.records import Example
from exemplar.retrieval import nearest
from exemplar.retrieval.members import Members
from exemplar.retrieval.nearest import Ranked
from exemplar.retrieval.ranking import by_task, require_pool

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_INDEX, _POOL = "index.faiss", "pool.parquet"
_TEXTS_AT_ONCE = 1 << 16


class TextEncoder(Protocol):
    """What turns texts into unit vectors: `retrieval.encoder.Encoder`, or a stand-in in tests."""

    def encode(self, texts: Sequence[str], *, progress: str | None = None) -> NDArray[np.float32]:
        """Return float32 unit vectors (N, D), in the order of the texts."""
        ...


class Hit(NamedTuple):
    """A pool example that was found, its cosine similarity with the query, its place in `pool`."""

    example: Example
    similarity: float
    place: int


class PoolIndex:
    """The embedded pool: searched within one task or as a whole.

    `pool` is grouped by task (a task's examples lie together, in the order given), so that a task's
    search reads its own stretch of `vectors` (P, D) and nothing else. They are in memory, or mapped
    from their file; the examples stay where they are.
    """

    def __init__(self, pool: Sequence[Example], embeddings_PD: NDArray[np.float32]):
        """Index a pool that is grouped by task; `build` groups one that is not."""
        if len(pool) != len(embeddings_PD) or not pool:
            raise DataError(
                f"expected one embedding an example and at least one example, got {len(pool)} "
                f"examples and {len(embeddings_PD)} embeddings."
            )
        assert list(_grouped(pool)) == list(pool), "the pool is not grouped by task"
        index, matrix_PD = _flat(*embeddings_PD.shape)
        matrix_PD[:] = embeddings_PD
        self._set(pool, index)

    def _set(self, pool: Sequence[Example], index: Any, device: str = "cpu") -> None:
        self.pool = pool
        self.device = device
        self._index, self.vectors = index, _matrix(index)
        self._spans: dict[str, tuple[int, int]] = {}
        self._approximate: dict[str, nearest.Approximate] = {}
        start = 0
        for task, examples in by_task(pool).items():
            self._spans[task] = (start, start + len(examples))
            start += len(examples)

    @classmethod
    def build(
        cls,
        pool: Sequence[Example],
        encoder: TextEncoder,
        *,
        approximate_above: int | None = None,
        probes: int = 32,
        progress: str | None = None,
    ) -> PoolIndex:
        """Embed the texts of a pool and index them, on the encoder's device.

        Tasks of more than `approximate_above` examples also get an approximate index, which visits
        `probes` cells a query.
        """
        if not pool:
            raise DataError("a pool index needs at least one example, got an empty pool.")
        pool = _grouped(pool)
        start, index, matrix_PD = 0, None, None
        for texts in _windows(pool):
            part = f", {start:,} of {len(pool):,} done" if start else ""
            block = encoder.encode(texts, progress=progress and f"{progress}{part}")
            if matrix_PD is None:
                index, matrix_PD = _flat(len(pool), block.shape[1])
            matrix_PD[start : start + len(block)] = block
            start += len(block)
        built = cls.__new__(cls)
        built._set(pool, index, str(getattr(encoder, "device", "cpu")))
        for task, (first, last) in built._spans.items():
            if approximate_above is not None and last - first > approximate_above:
                rows_ND = built.vectors[first:last]
                built._approximate[task] = nearest.Approximate.build(rows_ND, probes=probes)
        return built

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of the pool."""
        return tuple(self._spans)

    @property
    def sizes(self) -> dict[str, int]:
        """The tasks of the pool, and how many examples each has."""
        return {task: stop - start for task, (start, stop) in self._spans.items()}

    @property
    def approximated(self) -> tuple[str, ...]:
        """The tasks that are searched approximately."""
        return tuple(self._approximate)

    @cached_property
    def members(self) -> Members:
        """The ids of the pool by place, and which places a query may not see."""
        return Members(self.pool)

    def search(
        self,
        embeddings_QD: NDArray[np.float32],
        *,
        k: int,
        task: str | None = None,
        excluded: Sequence[Collection[int]] | None = None,
        allowed_P: NDArray[np.bool_] | None = None,
    ) -> list[list[Hit]]:
        """Return the k most similar examples of each query, most similar first; see `places`.

        `allowed_P` marks the places that all queries may see; such a search is always exact.
        """
        if allowed_P is None:
            ranked = self.places(embeddings_QD, k=k, task=task, excluded=excluded)
        else:
            span = (0, len(self.pool)) if task is None else self._spans[task]
            ranked = nearest.among(self._index, embeddings_QD, k, allowed_P, span, excluded)
        return [
            [Hit(self.pool[at], similarity, at) for at, similarity in zip(*found, strict=True)]
            for found in ranked
        ]

    def places(
        self,
        embeddings_QD: NDArray[np.float32],
        *,
        k: int,
        task: str | None = None,
        excluded: Sequence[Collection[int]] | None = None,
        exact: bool = False,
    ) -> list[Ranked]:
        """Return the places in `pool` of the k most similar examples, and their similarities.

        `task` None searches the whole pool. `excluded[i]` holds places that query i may not see.
        Exact, or approximate in the tasks that have such an index unless `exact`; equal
        similarities (to six decimals) keep pool order. Fewer than k come where fewer are eligible.
        Raises `TaskError` for a task without pool examples.
        """
        if task is not None:
            require_pool(task, self._spans)
        hidden = excluded or [()] * len(embeddings_QD)
        if task is None and (exact or not self._approximate):
            return self._exactly(embeddings_QD, k, (0, len(self.pool)), hidden)
        found = []
        for name in self._spans if task is None else [task]:
            if name in self._approximate and not exact:
                found.append(self._nearly(embeddings_QD, k, name, hidden))
            else:
                found.append(self._exactly(embeddings_QD, k, self._spans[name], hidden))
        if len(found) == 1:
            return found[0]
        return [nearest.merged(row, k) for row in zip(*found, strict=True)]

    def _exactly(
        self,
        embeddings_QD: NDArray[np.float32],
        k: int,
        span: tuple[int, int],
        hidden: Sequence[Collection[int]],
    ) -> list[Ranked]:
        start, stop = span
        most = max((len(places) for places in hidden), default=0)
        results: list[Ranked] = [([], [])] * len(hidden)
        pending, fetch = list(range(len(hidden))), k + most + 1
        while pending:
            fetch = min(fetch, stop - start)
            values_QF, places_QF = nearest.exact(
                embeddings_QD[pending], self.vectors[start:stop], fetch, self.device
            )
            ranked = nearest.ranked(values_QF, places_QF + start, [hidden[row] for row in pending])
            undecided = []
            for row, (places, values) in zip(pending, ranked, strict=True):
                # A tie that reaches the end of what was fetched may have more members beyond it.
                if len(values) > k and values[k - 1] == values[-1] and fetch < stop - start:
                    undecided.append(row)
                results[row] = places[:k], values[:k]
            pending, fetch = undecided, fetch * 4
        return results

    def _nearly(
        self,
        embeddings_QD: NDArray[np.float32],
        k: int,
        task: str,
        hidden: Sequence[Collection[int]],
    ) -> list[Ranked]:
        start, stop = self._spans[task]
        most = max((len(places) for places in hidden), default=0)
        values_QF, places_QF = self._approximate[task].search(
            embeddings_QD, self.vectors[start:stop], min(k + most, stop - start)
        )
        ranked = nearest.ranked(values_QF, places_QF + start, hidden)
        return [(places[:k], values[:k]) for places, values in ranked]

    def save(self, folder: Path, *, made_from: Mapping[str, str] | None = None) -> None:
        """Write the FAISS indexes and the pool, bound to each other by fingerprints.

        `made_from`: fingerprints of what both come from, kept in pool.parquet.
        """
        import faiss

        with atomic_folder(folder) as path:
            faiss.write_index(self._index, str(path / _INDEX))
            sealed = {**(made_from or {}), "index": fingerprint(path / _INDEX)}
            for task, index in self._approximate.items():
                name = self._name(task)
                index.save(path / name)
                sealed[name] = fingerprint(path / name)
            write_records(path / _POOL, Example, self.pool, made_from=sealed)

    def _name(self, task: str) -> str:
        return f"approximate-{list(self._spans).index(task)}.faiss"

    @classmethod
    def load(cls, folder: Path, *, texts_in_memory: bool = False) -> PoolIndex:
        """Open what `save` wrote. Raises `DataError` where the files do not belong together.

        The embeddings are mapped from their file, so that several processes share them. The
        examples stay in theirs, or `texts_in_memory` as `StoredExamples.held`.
        """
        import faiss

        made_from = {"index": fingerprint(folder / _INDEX)}
        for path in folder.glob("approximate-*.faiss"):
            made_from[path.name] = fingerprint(path)
        pool = StoredExamples(folder / _POOL, made_from=made_from)
        pool = pool.held() if texts_in_memory else pool
        loaded = cls.__new__(cls)
        loaded._set(pool, faiss.read_index(str(folder / _INDEX), faiss.IO_FLAG_MMAP_IFC))
        for task in loaded._spans:
            if (path := folder / loaded._name(task)).is_file():
                loaded._approximate[task] = nearest.Approximate.load(path)
        return loaded


def _flat(num_rows: int, dimension: int) -> tuple[Any, NDArray[np.float32]]:
    """Return a FAISS index with room for the rows, and its matrix (P, D), to be filled in place.

    Adding rows would hold them twice, and up to four times while the index grows.
    """
    import faiss

    index = faiss.IndexFlatIP(dimension)
    index.codes.resize(num_rows * dimension * 4)
    index.ntotal = num_rows
    return index, _matrix(index)


def _matrix(index: Any) -> NDArray[np.float32]:
    """Return a flat index's embeddings (P, D) where they lie; they live as long as the index."""
    import faiss

    matrix_PD: NDArray[np.float32] = faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d)
    return matrix_PD.reshape(index.ntotal, index.d)


def _grouped(pool: Sequence[Example]) -> Sequence[Example]:
    """Return a pool with the examples of a task one behind the other."""
    if isinstance(pool, StoredExamples):
        return pool.grouped()
    return [example for examples in by_task(pool).values() for example in examples]


def _windows(pool: Sequence[Example]) -> Iterator[list[str]]:
    examples = iter(pool)
    while texts := [example.text for example in islice(examples, _TEXTS_AT_ONCE)]:
        yield texts
