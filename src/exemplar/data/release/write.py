"""A data folder that came from a release, written back as the files that it came from."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from exemplar.data.io import atomic_path, read_json, read_records
from exemplar.data.release import rows
from exemplar.data.release.fill import FOLDER, KEPT, RECORDS
from exemplar.data.release.rows import Numbering, Values
from exemplar.data.stored import StoredExamples
from exemplar.errors import DataError
from exemplar.records import Candidates, Example, Rewards

_LEVEL = 1  # of compression, as the paper's code has it


def write_release(data: Path, out: Path) -> dict[str, int]:
    """Write the released files of a data folder to `out`; return their rows by name.

    Their content is byte for byte that of the files which the folder was made from; compressed,
    they may differ. Raises `DataError` where the folder was made from another source, or from a
    part of the tasks, and where a file does not come out with its recorded sha256.
    """
    manifest = read_json(data / "manifest.json")
    released = manifest.get("released")
    if not released or not released["whole"]:
        raise DataError(
            f"{data} was made from {'a part' if released else 'a source other than files'} of the "
            "release; only all of it can be written back. Run download_data with the source "
            "'released' and tasks: null."
        )
    files: Mapping[str, Any] = released["files"]
    numbering = Numbering(released["starts"], files["passages"]["rows"])
    kept = read_json(data / FOLDER / KEPT)
    for name, values in _values(data, files, numbering):
        facts = files[name]
        instead = {item["row"]: item for item in kept if item["file"] == name}
        lines = _merged(
            (rows.line(value, facts["columns"]) if value else "" for value in values),
            instead,
            facts["rows"],
        )
        _write(out / f"{name}.jsonl.gz", lines, facts)
    return {name: facts["rows"] for name, facts in files.items()}


def _values(
    data: Path, files: Mapping[str, Any], numbering: Numbering
) -> Iterator[tuple[str, Iterable[Values]]]:
    """Yield each file's name and the rows of its records."""
    pool = StoredExamples(data / "pool.parquet")
    yield "passages", (rows.passage_values(one, int(one.example_id)) for one in pool)
    train = read_records(data / FOLDER / "train.parquet", Example)
    asked = {one.example_id: rows.question_values(one, numbering.query_id(one)) for one in train}
    yield "train", (asked[one.example_id] for one in train)
    test = read_records(data / FOLDER / "test.parquet", Example)
    yield "test", (rows.question_values(one, one.example_id) for one in test)
    for name in filter(files.__contains__, RECORDS):
        kind, path = RECORDS[name]
        yield name, (_scored(asked, one) for one in read_records(data / FOLDER / path, kind))


def _scored(asked: Mapping[str, Values], record: Candidates | Rewards) -> Values:
    """Return the row of a record; nothing where its query has none, and its line was kept."""
    if record.query_id not in asked:
        return {}
    query = asked[record.query_id]
    return rows.scored_values(query, record.candidate_ids, rows.scores_of(record))


def _merged(
    lines: Iterator[str], instead: Mapping[int, Mapping[str, Any]], total: int
) -> Iterator[str]:
    """Yield all lines of a file: those of records, and those that were kept."""
    for row in range(total):
        if row not in instead:
            yield next(lines, "")
            continue
        if instead[row]["recorded"]:
            next(lines, "")
        yield instead[row]["line"]


def _write(path: Path, lines: Iterator[str], facts: Mapping[str, Any]) -> None:
    digest = hashlib.sha256()
    with atomic_path(path) as temporary:
        with gzip.GzipFile(temporary, "wb", compresslevel=_LEVEL, mtime=0) as file:
            for line in tqdm(
                lines, desc=path.name, total=facts["rows"], unit="row", unit_scale=True
            ):
                content = line.encode()
                digest.update(content)
                file.write(content)
        if digest.hexdigest() != facts["sha256"]:
            raise DataError(
                f"{path} does not come out as it was read (sha256 {digest.hexdigest()[:12]}, "
                f"expected {facts['sha256'][:12]}): the data folder was changed since. Remake it "
                "with download_data."
            )
