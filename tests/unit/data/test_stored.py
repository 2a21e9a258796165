"""Claims about examples that stay in their file, and about texts kept as digests."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exemplar.data.digests import DigestSet
from exemplar.data.io import write_records
from exemplar.data.stored import StoredExamples, where
from exemplar.errors import DataError
from exemplar.records import Example

SIZE = 9000  # three row groups
EXAMPLES = [
    Example(f"e{i}", "abc"[i // 5 % 3 if i < 6000 else 1], f"question {i}", (f"{i}",), group="g")
    for i in range(SIZE)
]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stored") / "pool.parquet"
    write_records(path, Example, EXAMPLES, made_from={"source": "x"})
    return path


def test_a_stored_pool_is_the_list_that_was_written(path: Path) -> None:
    """Every retriever reads the pool through it; a row lost at a row group's end goes unnoticed."""
    stored = StoredExamples(path)
    assert len(stored) == SIZE
    assert list(stored) == EXAMPLES
    for place in (0, 4095, 4096, 8191, 8192, -1, -SIZE):
        assert stored[place] == EXAMPLES[place]
    assert stored[4090:4100] == EXAMPLES[4090:4100]
    for place in (SIZE, -SIZE - 1):
        with pytest.raises(IndexError):
            stored[place]


def test_a_task_s_examples_are_found_wherever_they_lie(path: Path) -> None:
    """An index over another task's rows would propose them as candidates."""
    tasks = StoredExamples(path).by_task()
    assert list(tasks) == ["a", "b", "c"]
    for task, stored in tasks.items():
        expected = [example for example in EXAMPLES if example.task == task]
        assert list(stored) == expected
        assert [stored[at] for at in (0, 7, len(expected) // 2, -1)] == [
            expected[at] for at in (0, 7, len(expected) // 2, -1)
        ]
    grouped = StoredExamples(path).grouped()
    assert list(grouped) == sorted(EXAMPLES, key=lambda example: example.task)
    assert list(grouped.by_task()["b"]) == list(tasks["b"])


def test_tasks_that_alternate_within_a_row_group_are_told_apart(tmp_path: Path) -> None:
    """Embeddings in one order and examples in another answer with the wrong examples."""
    few = EXAMPLES[:100]
    write_records(tmp_path / "pool.parquet", Example, few, made_from={})
    grouped = StoredExamples(tmp_path / "pool.parquet").grouped()
    expected = sorted(few, key=lambda example: example.task)
    assert list(grouped) == expected
    assert [grouped[at] for at in range(100)] == expected


def test_held_in_memory_it_is_the_same_pool(path: Path, tmp_path: Path) -> None:
    """A served version goes on after its downloaded files are gone."""
    copied = tmp_path / "pool.parquet"
    copied.write_bytes(path.read_bytes())
    held = StoredExamples(copied).grouped().held()
    copied.write_bytes(b"")
    expected = sorted(EXAMPLES, key=lambda example: example.task)
    assert list(held) == expected
    assert [held[place] for place in (0, 4096, -1)] == [expected[at] for at in (0, 4096, -1)]
    assert list(held.by_task()["c"]) == [e for e in expected if e.task == "c"]


def test_a_mask_marks_the_examples_with_one_of_the_values(path: Path) -> None:
    """A filter that slips by a row shows what was to be left out."""
    stored = StoredExamples(path).grouped()
    for pool in (stored, stored.held(), list(stored)):
        for field, values in (
            ("task", ["a", "c"]),
            ("answer", ["5", "4096", "8999"]),
            ("group", ["g"]),
            ("group", []),
        ):
            mask_P = where(pool, field, values)
            expected = [getattr(example, field) in values for example in stored]
            assert mask_P.tolist() == expected


def test_select_gives_the_examples_that_are_there(path: Path) -> None:
    """Training looks up its queries and candidates by id, among millions."""
    names = ["e8999", "e0", "e4096", "e4095", "elsewhere"]
    found = StoredExamples(path).select(names)
    assert found == {f"e{i}": EXAMPLES[i] for i in (0, 4095, 4096, 8999)}


def test_a_file_of_other_inputs_or_cut_off_is_refused(path: Path, tmp_path: Path) -> None:
    """A pool that does not belong to an index answers with other examples, without any error."""
    with pytest.raises(DataError, match="made from another source"):
        StoredExamples(path, made_from={"source": "y"})
    damaged = bytearray(path.read_bytes())
    damaged[100:20_000] = bytes(19_900)
    (tmp_path / "pool.parquet").write_bytes(damaged)
    with pytest.raises(DataError, match=r"pool\.parquet is not a readable Parquet file"):
        list(StoredExamples(tmp_path / "pool.parquet"))


@given(st.lists(st.text(max_size=3)))
def test_a_digest_set_is_a_set(texts: list[str]) -> None:
    """A text taken for another is an example lost, or a test query left in the pool."""
    digests, plain = DigestSet(), set[str]()
    for text in texts:
        assert (text in digests) == (text in plain)
        assert digests.add(text) == (text not in plain)
        plain.add(text)
    assert len(digests) == len(plain)


def test_a_digest_set_grows_in_little_memory() -> None:
    """Python's own set takes about 100 bytes a text: 600 MB for a pool of six million."""
    tracemalloc.start()
    digests = DigestSet()
    assert all(digests.add(f"text {i}") for i in range(20_000))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 30 * 20_000
    assert not any(digests.add(f"text {i}") for i in range(20_000))
    assert "text 20000" not in digests
