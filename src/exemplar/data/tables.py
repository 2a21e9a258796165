"""Rows of a table file, one after the other: JSON lines (plain or gzip), CSV, Parquet."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from exemplar.errors import DataError

SUFFIXES = (".jsonl.gz", ".jsonl", ".csv", ".parquet")

Row = dict[str, Any]


def find_table(folder: Path, name: str) -> Path | None:
    """Return the one file `name` + a known suffix in a folder, or None where there is none.

    Raises `DataError` where there are several: nobody could tell which one counts.
    """
    found = [path for suffix in SUFFIXES if (path := folder / f"{name}{suffix}").is_file()]
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise DataError(
            f"{folder} holds {names}. Keep one of them, so that it is clear which counts."
        )
    return found[0] if found else None


def read_rows(path: Path) -> Iterator[Row]:
    """Yield a file's rows in its order, without holding the whole file in memory.

    Raises `DataError`, naming the file and where possible the line, on what cannot be read.
    """
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
    elif path.suffix == ".csv":
        with _told_errors(path), path.open(encoding="utf-8-sig", newline="") as file:
            yield from _csv_rows(path, file)
    else:
        for _, row in read_json_lines(path):
            yield row


def read_json_lines(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield the lines of a JSON lines file that are not blank, as they stand, and their rows.

    Errors are those of `read_rows`.
    """
    with _told_errors(path), _open_text(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield line, _json_row(path, number, line)


@contextmanager
def _told_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path} is a damaged or cut-off gzip file ({error}). Fetch or write it again."
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}). Save it as UTF-8.") from error


def _open_text(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _json_row(path: Path, number: int, line: str) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {number} is not JSON ({error}). Each line must be one JSON object; "
            "a last line that breaks off means that the file was cut off."
        ) from error
    if not isinstance(row, dict):
        raise DataError(
            f"{path}, line {number}: expected a JSON object with the row's columns, "
            f"got {line.strip()[:80]}."
        )
    return row


def _csv_rows(path: Path, file: TextIO) -> Iterator[Row]:
    reader = csv.DictReader(file, strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise DataError(
                    f"{path}, line {reader.line_num}: the row has more or fewer fields than the "
                    f"header ({len(reader.fieldnames or [])}). Put quotes around commas and line "
                    "breaks within a field."
                )
            yield row
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num} is not CSV ({error}).") from error


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{path} is not a readable Parquet file ({error}). Fetch or write it again."
        ) from error
