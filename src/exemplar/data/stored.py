"""Examples that stay in their Parquet file: read a row group at a time, when they are asked for.

A pool of millions takes the memory of a few row groups, whoever goes through it.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from copy import copy
from functools import lru_cache
from itertools import accumulate, groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from exemplar.data.io import open_records, records_in, unreadable
from exemplar.records import Example

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

Field = Literal["task", "group", "answer"]

_GROUPS_KEPT = 64  # row groups kept for random access, 10 to 100 MiB of texts


class StoredExamples(Sequence[Example]):
    """The examples of a Parquet file, or stretches of them, as a sequence.

    Going through them reads the file from front to back. An example by its place costs a row group
    (milliseconds), unless it is among the last ones read; for many use `select`.
    """

    def __init__(self, path: Path, *, made_from: Mapping[str, str] | None = None) -> None:
        """Open a file that `write_records` wrote; raises what `read_records` does."""
        self._file = _File(path, made_from)
        self._set([(0, len(self._file))])

    def _set(self, stretches: list[tuple[int, int]]) -> None:
        self._stretches = stretches
        self._ends = list(accumulate(stop - start for start, stop in stretches))

    def _part(self, stretches: list[tuple[int, int]]) -> StoredExamples:
        part = StoredExamples.__new__(StoredExamples)
        part._file = self._file
        part._set(stretches)
        return part

    def held(self) -> StoredExamples:
        """Return the same examples with their file in memory, as Arrow columns.

        An example by its place then costs microseconds, and all of them a few hundred bytes each:
        as objects they would take more than a kilobyte each, and half a minute a million.
        """
        part = self._part(self._stretches)
        part._file = self._file.held()
        return part

    def where(self, field: Field, values: Collection[str]) -> NDArray[np.bool_]:
        """Return the mask (P,) of the examples whose field has one of the values."""
        import numpy as np

        masks = [
            self._file.where(number, field, values)[first:last]
            for start, stop in self._stretches
            for number, first, last in self._file.groups(start, stop)
        ]
        return np.concatenate(masks)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __iter__(self) -> Iterator[Example]:
        for number, rows in self._rows():
            yield from self._file.examples(number, rows)

    def _rows(self) -> Iterator[tuple[int, list[int]]]:
        """Yield the row groups that the stretches run through, with the rows they take of each."""
        pieces = (
            piece for start, stop in self._stretches for piece in self._file.groups(start, stop)
        )
        for number, of_group in groupby(pieces, key=itemgetter(0)):
            yield number, [row for _, first, last in of_group for row in range(first, last)]

    @overload
    def __getitem__(self, place: int) -> Example: ...
    @overload
    def __getitem__(self, place: slice) -> list[Example]: ...
    def __getitem__(self, place: int | slice) -> Example | list[Example]:
        if isinstance(place, slice):
            return [self[at] for at in range(len(self))[place]]
        at = range(len(self))[place]  # counts from the end, and raises IndexError
        number = bisect_right(self._ends, at)
        return self._file.example(self._stretches[number][1] - (self._ends[number] - at))

    def by_task(self) -> dict[str, StoredExamples]:
        """Return the stretches of each task; tasks and examples keep their order."""
        found: dict[str, list[tuple[int, int]]] = {}
        for start, stop in self._stretches:
            for task, first, last in self._file.runs():
                first, last = max(first, start), min(last, stop)
                if first < last:
                    found.setdefault(task, []).append((first, last))
        return {task: self._part(stretches) for task, stretches in found.items()}

    def grouped(self) -> StoredExamples:
        """Return the same examples with those of a task one behind the other."""
        parts = self.by_task().values()
        return self._part([stretch for part in parts for stretch in part._stretches])

    def select(self, ids: Collection[str]) -> dict[str, Example]:
        """Return those examples whose ids are asked for, by id, in a single pass."""
        wanted = frozenset(ids)
        found = {}
        for number, rows in self._rows():
            names = self._file.ids(number)
            chosen = [row for row in rows if names[row] in wanted]
            if chosen:
                for example in self._file.examples(number, chosen):
                    found[example.example_id] = example
        return found


def where(pool: Sequence[Example], field: Field, values: Collection[str]) -> NDArray[np.bool_]:
    """Return the mask (P,) of the examples whose field has one of the values."""
    import numpy as np

    if isinstance(pool, StoredExamples):
        return pool.where(field, values)
    return np.fromiter((getattr(example, field) in values for example in pool), np.bool_)


class _File:
    """An open Parquet file of examples."""

    def __init__(self, path: Path, made_from: Mapping[str, str] | None) -> None:
        self._path = path
        self._parquet = open_records(path, Example, made_from)
        metadata = self._parquet.metadata
        sizes: list[int] = [
            metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)
        ]
        self._starts = [0, *accumulate(sizes)]
        self._lock = threading.Lock()  # one reader of a Parquet file at a time
        self._groups: list[pa.Table] = []  # all of them, where the file is held in memory
        self._kept: Callable[[int], pa.Table] = lru_cache(maxsize=_GROUPS_KEPT)(self._read)

    def __len__(self) -> int:
        return self._starts[-1]

    def held(self) -> _File:
        """Return the file with all its row groups read."""
        held = copy(self)
        held._groups = [self._read(number) for number in range(len(self._starts) - 1)]
        held._kept = held._read
        return held

    def where(self, number: int, field: Field, values: Collection[str]) -> NDArray[np.bool_]:
        """Return which rows of a row group have one of the values; answer: the first one."""
        import pyarrow as pa
        import pyarrow.compute as pc

        column = self._read(number, ("answers" if field == "answer" else field,)).column(0)
        if field == "answer":
            column = pc.list_element(column, 0)
        found = pc.is_in(column, value_set=pa.array(list(values), pa.string()))
        mask: NDArray[np.bool_] = found.to_numpy()
        return mask

    def groups(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yield each row group of a stretch: its number, and its first and last row within it."""
        for number in range(bisect_right(self._starts, start) - 1, len(self._starts) - 1):
            begin, end = self._starts[number], self._starts[number + 1]
            if begin >= stop:
                return
            yield number, max(start - begin, 0), min(stop, end) - begin

    def examples(self, number: int, rows: list[int]) -> list[Example]:
        """Return the examples at these rows of a row group."""
        table = self._read(number)
        if rows != list(range(table.num_rows)):
            table = table.take(rows)
        return records_in(table, Example)

    def example(self, row: int) -> Example:
        number = bisect_right(self._starts, row) - 1
        return records_in(self._kept(number).slice(row - self._starts[number], 1), Example)[0]

    def ids(self, number: int) -> list[str]:
        """Return the ids of a row group's rows."""
        column: list[str] = self._read(number, ("example_id",)).column(0).to_pylist()
        return column

    @lru_cache(maxsize=1)  # noqa: B019 (lives as long as the file)
    def runs(self) -> list[tuple[str, int, int]]:
        """Return the runs of one task: its name, first row and the row behind its last."""
        runs: list[tuple[str, int, int]] = []
        row = 0
        for number in range(len(self._starts) - 1):
            for task, members in groupby(self._read(number, ("task",)).column(0).to_pylist()):
                size = sum(1 for _ in members)
                if runs and runs[-1][0] == task:
                    task, first, _ = runs.pop()
                    runs.append((task, first, row + size))
                else:
                    runs.append((task, row, row + size))
                row += size
        return runs

    def _read(self, number: int, columns: Sequence[str] | None = None) -> pa.Table:
        import pyarrow as pa

        if self._groups:
            held = self._groups[number]
            return held.select(list(columns)) if columns else held
        try:
            with self._lock:
                names: Any = list(columns) if columns else None
                return self._parquet.read_row_group(number, columns=names)
        except (pa.ArrowException, OSError) as error:
            raise unreadable(self._path, error) from error
