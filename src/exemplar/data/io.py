"""Parquet in and out: validated, written whole or not at all, traceable to its inputs.

Each file holds one kind of record. Its Arrow schema metadata names the schema, its version and the
fingerprints of the inputs that it was made from. Reading checks all three, so that a file of
another kind, an older layout, or one made from other data is refused with the file to remake.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from exemplar.errors import DataError
from exemplar.records import Candidates, Example, LlmScores, Outcome, Rewards

if TYPE_CHECKING:
    import pyarrow as pa

Record = TypeVar("Record", Example, Candidates, LlmScores, Rewards, Outcome)

SCHEMA_VERSION = "1"
_CHUNK_BYTES = 1 << 20
_KEYS = {
    Example: "example_id",
    Candidates: "query_id",
    LlmScores: "query_id",
    Rewards: "query_id",
    Outcome: "example_id",
}
_SCORES = {
    Candidates: "similarities",
    LlmScores: "llm_logprobs",
    Rewards: "rewards",
}


def fingerprint(path: Path) -> str:
    """Return the sha256 of a file, or of a folder's relative names and contents."""
    digest = hashlib.sha256()
    if path.is_dir():
        for child in sorted(p for p in path.rglob("*") if p.is_file()):
            digest.update(f"{child.relative_to(path).as_posix()}\0".encode())
            digest.update(fingerprint(child).encode())
        return digest.hexdigest()
    if not path.is_file():
        raise DataError(f"{path} does not exist. Run the step that writes it (`dvc repro`).")
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


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


def write_records(
    path: Path, kind: type[Record], records: Iterable[Record], *, made_from: Mapping[str, str]
) -> int:
    """Write records to a Parquet file and return how many.

    `made_from` maps the names of the inputs to their fingerprints. Raises `DataError` on a record
    that `check_record` refuses, on a repeated key and where there is no record at all.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows, seen = [], set()
    key = _KEYS[kind]
    for record in records:
        check_record(record)
        identity = getattr(record, key)
        if identity in seen:
            raise DataError(
                f"{path}: {key} {identity!r} occurs twice; ids must be unique in a file."
            )
        seen.add(identity)
        rows.append({field.name: getattr(record, field.name) for field in fields(kind)})
    if not rows:
        raise DataError(f"{path}: there is nothing to write, 0 {kind.__name__} records came.")
    metadata = {
        "exemplar.kind": kind.__name__,
        "exemplar.schema_version": SCHEMA_VERSION,
        "exemplar.made_from": json.dumps(dict(made_from), sort_keys=True),
    }
    table = pa.Table.from_pylist(rows, schema=arrow_schema(kind).with_metadata(metadata))
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    return len(rows)


def read_records(
    path: Path, kind: type[Record], *, made_from: Mapping[str, str] | None = None
) -> list[Record]:
    """Read the records of a Parquet file.

    Raises `DataError` where the file is missing, unreadable, of another kind or version, or where
    an input named in `made_from` had another fingerprint when the file was written.
    """
    table = _read_table(path, kind, made_from)
    records = []
    for row in table.to_pylist():
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in row.items()
        }
        record: Record = kind(**values)
        check_record(record)
        records.append(record)
    return records


def made_from(path: Path) -> dict[str, str]:
    """Return the fingerprints of the inputs that a Parquet file was made from.

    Raises `DataError` where it is no readable Parquet file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_schema(path).metadata or {}
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{path} is not a readable Parquet file ({error}). Delete it and run the step again."
        ) from error
    return dict(json.loads(metadata.get(b"exemplar.made_from", b"{}")))


def _read_table(path: Path, kind: type[Any], made_from: Mapping[str, str] | None) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise DataError(f"{path} does not exist. Run the step that writes it (`dvc repro`).")
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{path} is not a readable Parquet file ({error}). Delete it and run `dvc repro`."
        ) from error
    metadata = {
        key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()
    }
    found = metadata.get("exemplar.kind"), metadata.get("exemplar.schema_version")
    if found != (kind.__name__, SCHEMA_VERSION):
        raise DataError(
            f"{path}: expected {kind.__name__} records of schema version {SCHEMA_VERSION}, got "
            f"{found[0] or 'unmarked'} records of version {found[1] or 'unknown'}. "
            "Give the right file, or remake it with `dvc repro`."
        )
    if not table.schema.equals(arrow_schema(kind), check_metadata=False):
        raise DataError(
            f"{path}: its columns are {table.schema.names}, expected {arrow_schema(kind).names} "
            "with the types of data/io.py. Remake it with `dvc repro`."
        )
    recorded = json.loads(metadata["exemplar.made_from"])
    for name, value in (made_from or {}).items():
        if recorded.get(name) != value:
            raise DataError(
                f"{path} was made from another {name} (fingerprint {str(recorded.get(name))[:12]}, "
                f"now {value[:12]}). Remake {path} with `dvc repro`, or restore the old {name}."
            )
    return table


def check_record(record: Example | Candidates | LlmScores | Rewards | Outcome) -> None:
    """Raise `DataError` where a record breaks its own rules (see `records.py`)."""
    identity = getattr(record, _KEYS[type(record)])
    if isinstance(record, Example):
        _check_example(record)
    elif isinstance(record, Outcome):
        if not (math.isfinite(record.score) and 0 <= record.score <= 100):
            raise DataError(f"outcome {identity!r}: score {record.score} is not within 0 to 100.")
    else:
        name = _SCORES[type(record)]
        _check_scores(
            f"{type(record).__name__} of query {identity!r}",
            record.candidate_ids,
            name,
            getattr(record, name),
        )
        if isinstance(record, LlmScores) and len(record.reasons) != len(record.candidate_ids):
            raise DataError(
                f"LlmScores of query {identity!r}: reasons and candidates differ in number."
            )


def _check_example(example: Example) -> None:
    def refuse(why: str) -> None:
        raise DataError(f"example {example.example_id!r} of task {example.task!r}: {why}")

    if not (example.example_id and example.task):
        refuse("example_id and task must not be empty.")
    if not example.query.strip():
        refuse("the query is empty.")
    if not example.answers or not example.answers[0].strip():
        refuse("it needs at least one answer that is not empty.")
    if example.choices:
        if example.gold is None or not 0 <= example.gold < len(example.choices):
            refuse(f"gold must index its {len(example.choices)} choices, got {example.gold}.")
        elif example.answers[0] != example.choices[example.gold]:
            refuse("answers[0] must be the text of the gold choice.")
    elif example.gold is not None:
        refuse("gold is set but there are no choices.")


def _check_scores(where: str, ids: Sequence[str], name: str, scores: Sequence[float]) -> None:
    if len(ids) != len(scores):
        raise DataError(f"{where}: {len(ids)} candidates but {len(scores)} {name}.")
    if len(set(ids)) != len(ids):
        raise DataError(f"{where}: a candidate occurs twice.")
    for candidate_id, score in zip(ids, scores, strict=True):
        if not math.isfinite(score):
            raise DataError(
                f"{where}: {name} of candidate {candidate_id!r} is {score}, not a finite number."
            )


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
