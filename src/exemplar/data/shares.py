"""Work shared out among processes that see no common folder: a share each, then all put together.

A share is a folder with `share.json`, which says whose it is and what it was made from, and the
records, if any fell to it. Putting together refuses a share that is missing, comes twice, or was
made from something else, so that shares of two runs are never mixed.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from exemplar.data.io import (
    Record,
    atomic_folder,
    atomic_path,
    read_json,
    read_records,
    write_json,
    write_records,
)
from exemplar.errors import ConfigError, DataError

_NOTE, _RECORDS = "share.json", "records.parquet"


@dataclass(frozen=True)
class Shard:
    """The share of one process of `count`: items `number`, `number` + `count`, ..., 1-based."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read "2/4". Raises `ConfigError` on anything else."""
        number, _, count = text.partition("/")
        if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
            raise ConfigError(
                f"shard {text!r}: expected NUMBER/COUNT with a number from 1 to the count of "
                "processes that share the work, for example 2/4."
            )
        return cls(int(number), int(count))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def has(self, place: int) -> bool:
        """Whether the item at `place`, counted from 0, falls to this share."""
        return place % self.count == self.number - 1


def write_share(
    folder: Path,
    shard: Shard,
    kind: type[Record],
    records: Sequence[Record],
    *,
    made_from: Mapping[str, str],
) -> None:
    """Write one share. A share may be empty: few items among many processes leave some idle."""
    with atomic_folder(folder) as temporary:
        if records:
            write_records(temporary / _RECORDS, kind, records, made_from=made_from)
        _write_note(temporary, shard, made_from)


def read_shares(
    folders: Iterable[Path], kind: type[Record], *, made_from: Mapping[str, str]
) -> list[Record]:
    """Read the records of all shares, share by share.

    Raises `DataError` where they are not all shares of one work, made from `made_from`, each once.
    """
    return [
        record
        for folder in require_all(folders, made_from)
        if (folder / _RECORDS).is_file()
        for record in read_records(folder / _RECORDS, kind, made_from=made_from)
    ]


def write_files(
    folder: Path, shard: Shard, files: Iterable[Path], *, made_from: Mapping[str, str]
) -> None:
    """Write a share that consists of files which lie elsewhere."""
    with atomic_folder(folder) as temporary:
        for path in files:
            shutil.copyfile(path, temporary / path.name)
        _write_note(temporary, shard, made_from)


def gather_files(folders: Iterable[Path], into: Path, *, made_from: Mapping[str, str]) -> None:
    """Put the files of all shares into one folder. Raises `DataError` as `read_shares` does."""
    for folder in require_all(folders, made_from):
        for path in folder.glob("*.parquet"):
            with atomic_path(into / path.name) as temporary:
                shutil.copyfile(path, temporary)


def require_all(folders: Iterable[Path], made_from: Mapping[str, str]) -> list[Path]:
    """Return the shares' folders in order.

    Raises `DataError` where they are not all shares of one work, made from `made_from`, each once.
    """
    found: dict[Shard, Path] = {}
    for folder in folders:
        note = read_json(folder / _NOTE)
        shard = Shard.parse(str(note["shard"]))
        differing = sorted(
            name
            for name in {*note["made_from"], *made_from}
            if note["made_from"].get(name) != made_from.get(name)
        )
        if differing:
            raise DataError(
                f"{folder} is a share of another work: its {', '.join(differing)} differ. Expected "
                "shares that were made from the same files with the same settings; make it again."
            )
        if shard in found:
            raise DataError(f"{folder} and {found[shard]} are both share {shard}; expected one.")
        found[shard] = folder
    counts = {shard.count for shard in found}
    expected = [Shard(number + 1, max(counts)) for number in range(max(counts))] if found else []
    missing = [str(shard) for shard in expected if shard not in found]
    if not found or missing or len(counts) > 1:
        raise DataError(
            f"the shares are not complete: got {', '.join(map(str, found)) or 'none'}, "
            f"missing {', '.join(missing) or 'all'}. Run those that are missing, then this again."
        )
    return [found[shard] for shard in expected]


def _write_note(folder: Path, shard: Shard, made_from: Mapping[str, str]) -> None:
    write_json(folder / _NOTE, {"shard": str(shard), "made_from": dict(made_from)})
