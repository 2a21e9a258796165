"""What search keeps of pool examples: ids and digests, whatever the length of their texts.

Shape suffix: P pool examples.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, overload

from exemplar.data.digests import digest
from exemplar.records import Candidates, Example
from exemplar.retrieval.ranking import normalise, require_candidates

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Names:
    """Ids by place, as one run of bytes."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._ends = array("Q", [0])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, place: int) -> str:
        return self._bytes[self._ends[place] : self._ends[place + 1]].decode()

    def append(self, name: str) -> None:
        """Take the id of the next place."""
        self._bytes += name.encode()
        self._ends.append(len(self._bytes))


class Members:
    """The ids of pool examples by place, and which of them a query may not see.

    A query may not see itself, nor an example with the same normalised query: they would hand the
    LM the answer. About 60 bytes an example.
    """

    def __init__(self, examples: Iterable[Example] = ()) -> None:
        self.names = Names()
        self._of_ids, self._of_queries = _Places(), _Places()
        for _ in self.noting(examples):
            pass

    def __len__(self) -> int:
        return len(self.names)

    def noting(self, examples: Iterable[Example]) -> Iterator[Example]:
        """Yield examples, taking note of each as it passes."""
        for example in examples:
            self.names.append(example.example_id)
            self._of_ids.append(example.example_id)
            self._of_queries.append(normalise(example.query))
            yield example

    def excluded(self, query: Example) -> set[int]:
        """Return the places that a query may not see."""
        return {
            *self._of_ids.of(query.example_id),
            *self._of_queries.of(normalise(query.query)),
        }


class _Places:
    """From a text to the places where it stood, by digest. It is full at the first look-up."""

    def __init__(self) -> None:
        self._digests = array("Q")
        self._sorted: tuple[NDArray[np.uint64], NDArray[np.uint32]] | None = None

    def append(self, text: str) -> None:
        assert self._sorted is None, "looked up before all were there"
        self._digests.append(digest(text))

    def of(self, text: str) -> list[int]:
        import numpy as np

        if self._sorted is None:
            digests_P = np.array(self._digests, dtype=np.uint64)
            order_P = np.argsort(digests_P, kind="stable").astype(np.uint32)
            self._sorted, self._digests = (digests_P[order_P], order_P), array("Q")
        digests_P, order_P = self._sorted
        key = np.uint64(digest(text))
        start, stop = np.searchsorted(digests_P, key), np.searchsorted(digests_P, key, "right")
        found: list[int] = order_P[start:stop].tolist()
        return found


class Embedded(Protocol):
    """What has the unit vectors of pool examples by place: `retrieval.pool_index.PoolIndex`."""

    vectors: NDArray[np.float32]


class Proposals(Sequence[Candidates]):
    """The candidates of many queries, held as numbers and made into records one at a time.

    `recall`: by task, the share of the true candidates that an approximate search found.
    """

    def __init__(self, queries: Sequence[Example], index: Embedded | None = None) -> None:
        """Hold nothing yet for these queries; `index` has the embeddings of what will be found."""
        self._queries, self._index = queries, index
        self._found: list[tuple[Names, array[int], array[float]] | None] = [None] * len(queries)
        self.recall: dict[str, float] = {}

    def put(
        self, row: int, names: Names, places: Collection[int], similarities: Collection[float]
    ) -> None:
        """Keep what was found for the query at `row`; raises `DataError` where that is nothing."""
        require_candidates(self._queries[row], len(places))
        self._found[row] = names, array("I", places), array("d", similarities)

    def places(self, row: int) -> Collection[int]:
        """Return the places in the pool that were found for the query at `row`."""
        found = self._found[row]
        assert found is not None, "a query was not searched for"
        return found[1]

    def embeddings(self, row: int) -> NDArray[np.float32] | None:
        """Return the candidates' unit vectors (N, D), or None where they were found without."""
        return None if self._index is None else self._index.vectors[list(self.places(row))]

    def picked(self, ranks: Iterable[Sequence[int]]) -> Proposals:
        """Return the same queries with those of their candidates alone, in that order.

        `ranks`: for each query, the ranks of the candidates that it keeps.
        """
        kept = Proposals(self._queries, self._index)
        kept.recall = self.recall
        for row, chosen in enumerate(ranks):
            found = self._found[row]
            assert found is not None, "a query was not searched for"
            names, places, similarities = found
            kept.put(row, names, [places[at] for at in chosen], [similarities[at] for at in chosen])
        return kept

    def __len__(self) -> int:
        return len(self._queries)

    @overload
    def __getitem__(self, row: int) -> Candidates: ...
    @overload
    def __getitem__(self, row: slice) -> list[Candidates]: ...
    def __getitem__(self, row: int | slice) -> Candidates | list[Candidates]:
        if isinstance(row, slice):
            return [self[at] for at in range(len(self))[row]]
        found = self._found[row]
        assert found is not None, "a query was not searched for"
        names, places, similarities = found
        return Candidates(
            query_id=self._queries[row].example_id,
            candidate_ids=tuple(names[place] for place in places),
            similarities=tuple(similarities),
        )
