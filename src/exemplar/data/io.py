"""Parquet in and out: validated, written whole or not at all, traceable to its inputs.

Each file holds one kind of record. Its Arrow schema metadata names the schema, its version and the
fingerprints of the inputs that it was made from. Reading checks all three, so that a file of
another kind, an older layout, or one made from other data is refused with the file to remake.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from sys import intern
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from exemplar.data.checks import check_record
from exemplar.data.digests import DigestSet
from exemplar.errors import DataError
from exemplar.records import Candidates, Example, LlmScores, Outcome, Rewards

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

Record = TypeVar("Record", Example, Candidates, LlmScores, Rewards, Outcome)

SCHEMA_VERSION = "1"
_ROW_GROUP = 4096  # records held as rows at once, in reading and writing
_KEYS = {
    Example: "example_id",
    Candidates: "query_id",
    LlmScores: "query_id",
    Rewards: "query_id",
    Outcome: "example_id",
}


def fingerprint(path: Path) -> str:
    """Return the sha256 of a file, or of a folder's relative names and contents."""
    if path.is_dir():
        digest = hashlib.sha256()
        for child in sorted(p for p in path.rglob("*") if p.is_file()):
            digest.update(f"{child.relative_to(path).as_posix()}\0".encode())
            digest.update(fingerprint(child).encode())
        return digest.hexdigest()
    if not path.is_file():
        raise DataError(f"{path} does not exist. Run the step that writes it (`dvc repro`).")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it into place if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)  # mkstemp makes files that nobody else can read
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON. NaN and infinity are refused: no JSON reader takes them."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file, with an error that names the file to remake."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{path} does not exist. Run the step that writes it (`dvc repro`)."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} is not JSON ({error}). Delete it and remake it with `dvc repro`."
        ) from error


def arrow_schema(kind: type[Any]) -> pa.Schema:
    """Return the Arrow schema of a record type."""
    import pyarrow as pa

    text, texts, reals = pa.string(), pa.list_(pa.string()), pa.list_(pa.float64())
    columns = {
        Example: [text, text, text, texts, texts, pa.int32(), text],
        Candidates: [text, texts, reals],
        LlmScores: [text, texts, reals, texts],
        Rewards: [text, texts, reals],
        Outcome: [text, text, text, text, pa.float64(), texts, pa.int32()],
    }[kind]
    names = [field.name for field in fields(kind)]
    return pa.schema(
        [
            pa.field(name, column, nullable=name == "gold")
            for name, column in zip(names, columns, strict=True)
        ]
    )


class Writer(Generic[Record]):
    """Takes the records of one Parquet file as they come; see `open_writer`."""

    def __init__(self, path: Path, kind: type[Record], parquet: pq.ParquetWriter) -> None:
        self._path, self._parquet = path, parquet
        self._kind: type[Record] = kind
        self._seen = DigestSet()
        self._rows: list[dict[str, Any]] = []

    def __len__(self) -> int:
        return len(self._seen)

    def add(self, record: Record) -> None:
        """Take a record. Raises `DataError` where `check_record` does, and on a repeated key."""
        check_record(record)
        key = _KEYS[self._kind]
        if not self._seen.add(getattr(record, key)):
            raise DataError(
                f"{self._path}: {key} {getattr(record, key)!r} occurs twice; ids must be unique in "
                "a file."
            )
        self._rows.append({field.name: getattr(record, field.name) for field in fields(self._kind)})
        if len(self._rows) == _ROW_GROUP:
            self.flush()

    def flush(self) -> None:
        """Write what has come as a row group."""
        import pyarrow as pa

        if self._rows:
            self._parquet.write_table(pa.Table.from_pylist(self._rows, schema=self._parquet.schema))
            self._rows.clear()


@contextmanager
def open_writer(
    path: Path, kind: type[Record], *, made_from: Mapping[str, str]
) -> Iterator[Writer[Record]]:
    """Yield a writer; the Parquet file is in place once the block has succeeded.

    `made_from` maps the names of the inputs to their fingerprints. Raises `DataError` where no
    record came.
    """
    import pyarrow.parquet as pq

    metadata = {
        "exemplar.kind": kind.__name__,
        "exemplar.schema_version": SCHEMA_VERSION,
        "exemplar.made_from": json.dumps(dict(made_from), sort_keys=True),
    }
    schema = arrow_schema(kind).with_metadata(metadata)
    with atomic_path(path) as temporary:
        with pq.ParquetWriter(temporary, schema, compression="zstd") as parquet:
            writer = Writer(path, kind, parquet)
            yield writer
            writer.flush()
        if not len(writer):
            raise DataError(f"{path}: there is nothing to write, 0 {kind.__name__} records came.")


def write_records(
    path: Path, kind: type[Record], records: Iterable[Record], *, made_from: Mapping[str, str]
) -> int:
    """Write records to a Parquet file, as they come, and return how many (see `open_writer`)."""
    with open_writer(path, kind, made_from=made_from) as writer:
        for record in records:
            writer.add(record)
    return len(writer)


def read_records(
    path: Path, kind: type[Record], *, made_from: Mapping[str, str] | None = None
) -> list[Record]:
    """Read the records of a Parquet file.

    Raises `DataError` where the file is missing, unreadable, of another kind or version, or where
    an input named in `made_from` had another fingerprint when the file was written.
    """
    import pyarrow as pa

    file, records = open_records(path, kind, made_from), []
    try:
        for batch in file.iter_batches(batch_size=_ROW_GROUP):
            records += records_in(batch, kind)
    except (pa.ArrowException, OSError) as error:
        raise unreadable(path, error) from error
    finally:
        file.close()
    return records


def records_in(table: pa.Table | pa.RecordBatch, kind: type[Record]) -> list[Record]:
    """Return the rows of a table as records, each checked."""
    records = []
    for row in table.to_pylist():
        record: Record = kind(**{name: _compact(value) for name, value in row.items()})
        check_record(record)
        records.append(record)
    return records


def _compact(value: Any) -> Any:
    """Lists become tuples; ids, which recur in very many records, are kept once."""
    if not isinstance(value, list):
        return value
    return tuple(intern(item) if isinstance(item, str) else item for item in value)


def made_from(path: Path) -> dict[str, str]:
    """Return the fingerprints of the inputs that a Parquet file was made from.

    Raises `DataError` where it is no readable Parquet file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_schema(path).metadata or {}
    except (pa.ArrowException, OSError) as error:
        raise unreadable(path, error) from error
    return dict(json.loads(metadata.get(b"exemplar.made_from", b"{}")))


def unreadable(path: Path, error: Exception) -> DataError:
    """Return the error for a file that is damaged."""
    return DataError(
        f"{path} is not a readable Parquet file ({error}). Delete it and run `dvc repro`."
    )


def open_records(
    path: Path, kind: type[Any], made_from: Mapping[str, str] | None
) -> pq.ParquetFile:
    """Open a file of records whose kind, columns and inputs are the expected ones."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise DataError(f"{path} does not exist. Run the step that writes it (`dvc repro`).")
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise unreadable(path, error) from error
    schema = file.schema_arrow
    metadata = {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}
    found = metadata.get("exemplar.kind"), metadata.get("exemplar.schema_version")
    if found != (kind.__name__, SCHEMA_VERSION):
        raise DataError(
            f"{path}: expected {kind.__name__} records of schema version {SCHEMA_VERSION}, got "
            f"{found[0] or 'unmarked'} records of version {found[1] or 'unknown'}. "
            "Give the right file, or remake it with `dvc repro`."
        )
    if not schema.equals(arrow_schema(kind), check_metadata=False):
        raise DataError(
            f"{path}: its columns are {schema.names}, expected {arrow_schema(kind).names} "
            "with the types of data/io.py. Remake it with `dvc repro`."
        )
    recorded = json.loads(metadata["exemplar.made_from"])
    for name, value in (made_from or {}).items():
        if recorded.get(name) != value:
            raise DataError(
                f"{path} was made from another {name} (fingerprint {str(recorded.get(name))[:12]}, "
                f"now {value[:12]}). Remake {path} with `dvc repro`, or restore the old {name}."
            )
    return file


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; let it replace `path` if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp makes folders that nobody else can read
        if path.exists():
            shutil.rmtree(path)
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
