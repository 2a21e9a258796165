"""Parquet in and out: what is read is what was written, or it is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exemplar.data import io
from exemplar.errors import DataError
from exemplar.records import OTHER_LABEL, Candidates, Example, LlmScores, Outcome, Rewards

EXAMPLE = Example("sst2/train/1", "sst2", "Film review: fine", ("positive",))
CHOICE = Example("arc/train/2", "arc", "Which?", ("b",), ("a", "b"), 1, "g")
CANDIDATES = Candidates("q1", ("c1", "c2"), (2.5, -1.0))
SCORES = LlmScores("q1", ("c1", "c2"), (-0.1, -2.0), ("", OTHER_LABEL))
REWARDS = Rewards("q1", ("c1", "c2"), (3.0, -4.5))
OUTCOME = Outcome("sst2/test/1", "sst2", "", "positive", 100.0, ("c1",), 2)
RECORDS: list[list[Any]] = [[EXAMPLE, CHOICE], [CANDIDATES], [SCORES], [REWARDS], [OUTCOME]]

plain = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=20)
visible = plain.filter(lambda text: bool(text.strip()))


def cut_off_file(path: Path) -> None:
    with io.atomic_path(path) as temporary:
        temporary.write_text("half a n")
        raise RuntimeError("power cut")


def cut_off_folder(path: Path) -> None:
    with io.atomic_folder(path) as temporary:
        (temporary / "new").write_text("2")
        raise RuntimeError("power cut")


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("records", RECORDS, ids=lambda records: type(records[0]).__name__)
def test_records_come_back_as_they_were(tmp_path: Path, records: list[Any]) -> None:
    """Tuples, None and empty lists must survive, or two runs would differ by a reload."""
    path = tmp_path / "new" / "folder" / "file.parquet"
    kind = type(records[0])
    assert io.write_records(path, kind, records, made_from={"data": "abc"}) == len(records)
    assert io.read_records(path, kind, made_from={"data": "abc"}) == records
    assert io.made_from(path) == {"data": "abc"}
    assert leftovers(path.parent) == ["file.parquet"]
    assert path.stat().st_mode & 0o777 == 0o644


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(query=visible, answers=st.lists(visible, min_size=1, max_size=3), group=plain)
def test_any_text_survives(tmp_path: Path, query: str, answers: list[str], group: str) -> None:
    """Users' texts hold line breaks, emoji and null characters."""
    example = Example("id", "task", query, tuple(answers), group=group)
    io.write_records(tmp_path / "x.parquet", Example, [example], made_from={})
    assert io.read_records(tmp_path / "x.parquet", Example) == [example]


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    """DVC and the fingerprints would otherwise see a change where there is none."""
    for name in ("a", "b"):
        io.write_records(tmp_path / name, Candidates, [CANDIDATES], made_from={"x": "1", "y": "2"})
    assert io.fingerprint(tmp_path / "a") == io.fingerprint(tmp_path / "b")


def test_a_missing_file_says_what_to_run(tmp_path: Path) -> None:
    """The usual cause is a step that has not run yet."""
    for read in (io.fingerprint, io.read_json, lambda path: io.read_records(path, Example)):
        with pytest.raises(DataError, match=r"gone does not exist.*dvc repro"):
            read(tmp_path / "gone")


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    """Half a copy must not be read as a shorter file."""
    path = tmp_path / "x.parquet"
    io.write_records(path, Example, [EXAMPLE], made_from={})
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"x\.parquet is not a readable Parquet file"):
        io.read_records(path, Example)
    (tmp_path / "x.json").write_text('{"a": ')
    with pytest.raises(DataError, match=r"x\.json is not JSON"):
        io.read_json(tmp_path / "x.json")


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    """Rewards and similarities have one layout: a swap would train on the wrong numbers."""
    path = tmp_path / "x.parquet"
    io.write_records(path, Rewards, [REWARDS], made_from={})
    with pytest.raises(DataError, match=r"expected Candidates records.*got Rewards"):
        io.read_records(path, Candidates)


def test_a_parquet_file_from_elsewhere_is_refused(tmp_path: Path) -> None:
    """A data frame's export has the columns but nobody knows what it was made from."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"query_id": ["q"]}), path)
    with pytest.raises(DataError, match="got unmarked records of version unknown"):
        io.read_records(path, Candidates)
    marked = pa.schema([("query_id", pa.string())]).with_metadata(
        {"exemplar.kind": "Candidates", "exemplar.schema_version": io.SCHEMA_VERSION}
    )
    pq.write_table(pa.table({"query_id": ["q"]}, schema=marked), path)
    with pytest.raises(DataError, match="its columns are"):
        io.read_records(path, Candidates)


def test_a_file_made_from_other_inputs_is_refused(tmp_path: Path) -> None:
    """Scores of an old pool, read with a new one, would belong to other examples."""
    path = tmp_path / "x.parquet"
    io.write_records(path, Candidates, [CANDIDATES], made_from={"data": "old"})
    with pytest.raises(DataError, match=r"made from another data \(fingerprint old, now new\)"):
        io.read_records(path, Candidates, made_from={"data": "new"})
    with pytest.raises(DataError, match="another pool"):
        io.read_records(path, Candidates, made_from={"pool": "x"})
    assert io.read_records(path, Candidates) == [CANDIDATES]


def test_a_repeated_key_is_refused(tmp_path: Path) -> None:
    """Two rows for one query would count it twice."""
    with pytest.raises(DataError, match="query_id 'q1' occurs twice"):
        io.write_records(tmp_path / "x", Rewards, [REWARDS, REWARDS], made_from={})
    assert leftovers(tmp_path) == []


def test_nothing_to_write_is_refused(tmp_path: Path) -> None:
    """An empty file would pass for a finished step."""
    with pytest.raises(DataError, match="0 Outcome records"):
        io.write_records(tmp_path / "x", Outcome, [], made_from={})
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("record", "says"),
    [
        (Example("", "t", "q", ("a",)), "must not be empty"),
        (Example("i", "t", "  ", ("a",)), "query is empty"),
        (Example("i", "t", "q", ()), "at least one answer"),
        (Example("i", "t", "q", (" ",)), "at least one answer"),
        (Example("i", "t", "q", ("a",), ("a", "b"), None), "gold must index"),
        (Example("i", "t", "q", ("a",), ("a", "b"), 2), "gold must index"),
        (Example("i", "t", "q", ("a",), ("a", "b"), 1), "text of the gold choice"),
        (Example("i", "t", "q", ("a",), (), 0), "no choices"),
        (Candidates("q", ("a", "b"), (1.0,)), "2 candidates but 1 similarities"),
        (Candidates("q", ("a", "a"), (1.0, 2.0)), "occurs twice"),
        (Rewards("q", ("a",), (float("nan"),)), "not a finite number"),
        (LlmScores("q", ("a",), (float("-inf"),), ("",)), "not a finite number"),
        (LlmScores("q", ("a",), (-1.0,), ()), "reasons and candidates"),
        (Outcome("i", "t", "", "p", 101.0, (), 0), "not within 0 to 100"),
        (Outcome("i", "t", "", "p", float("nan"), (), 0), "not within 0 to 100"),
    ],
)
def test_a_record_that_breaks_its_rules_is_never_written(
    tmp_path: Path, record: Any, says: str
) -> None:
    """A NaN that reaches a file is found three steps later, if at all."""
    with pytest.raises(DataError, match=says):
        io.write_records(tmp_path / "x", type(record), [record], made_from={})
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("write", [io.write_text, io.write_json])
def test_an_old_file_stands_until_the_new_one_is_whole(
    tmp_path: Path, write: Callable[[Path, Any], None]
) -> None:
    """A kill in the middle of a write must not cost the last good result."""
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="power cut"):
        cut_off_file(path)
    assert (path.read_text(), leftovers(tmp_path)) == ("old", ["file"])
    write(path, "new")
    assert "new" in path.read_text()
    assert leftovers(tmp_path) == ["file"]


def test_an_old_folder_stands_until_the_new_one_is_whole(tmp_path: Path) -> None:
    """A model folder with half the files of two models loads and answers nonsense."""
    folder = tmp_path / "model"
    with io.atomic_folder(folder) as temporary:
        (temporary / "old").write_text("1")
    with pytest.raises(RuntimeError, match="power cut"):
        cut_off_folder(folder)
    assert (leftovers(folder), leftovers(tmp_path)) == (["old"], ["model"])
    with io.atomic_folder(folder) as temporary:
        (temporary / "new").write_text("2")
    assert (leftovers(folder), leftovers(tmp_path)) == (["new"], ["model"])
    assert folder.stat().st_mode & 0o777 == 0o755


def test_json_refuses_what_no_reader_takes_and_keeps_texts_readable(tmp_path: Path) -> None:
    """NaN in metrics.json breaks the first tool that reads it."""
    path = tmp_path / "x.json"
    with pytest.raises(ValueError, match=r"not JSON compliant|Out of range"):
        io.write_json(path, {"loss": float("nan")})
    assert leftovers(tmp_path) == []
    io.write_json(path, {"task": "Café"})
    assert "Café" in path.read_text("utf-8")
    assert io.read_json(path) == json.loads(path.read_text("utf-8")) == {"task": "Café"}


def test_a_folders_fingerprint_covers_names_and_contents(tmp_path: Path) -> None:
    """A renamed or changed weight file is another model; a new modification time is not."""

    def folder(name: str, files: dict[str, str]) -> str:
        for file, text in files.items():
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return io.fingerprint(tmp_path / name)

    one = folder("one", {"a": "1", "sub/b": "2"})
    assert folder("two", {"sub/b": "2", "a": "1"}) == one
    others = [
        folder("three", {"a": "1", "sub/c": "2"}),
        folder("four", {"a": "1", "sub/b": "3"}),
        folder("five", {"a": "2", "sub/b": "1"}),
        folder("six", {"a": "1"}),
    ]
    assert len({one, *others}) == 5
