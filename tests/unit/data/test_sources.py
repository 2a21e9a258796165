"""Local folders and the sample set become pool, training queries and test queries."""

from __future__ import annotations

import csv
import gzip
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from exemplar.data import sources
from exemplar.data.checks import check_record
from exemplar.data.splits import Material, Numbered, Splits, divide
from exemplar.errors import DataError, TaskError
from exemplar.records import Example
from exemplar.tasks.spec import load_catalog, select

Rows = Sequence[dict[str, Any]]


def film(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"sentence": f"film number {i}", "label": i % 2} for i in range(start, start + count)]


def pair(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [
        {"premise": f"scene {i // 3}", "hypothesis": f"claim {i}", "label": i % 3}
        for i in range(start, start + count)
    ]


def save(root: Path, task: str, split: str, rows: Rows, suffix: str = ".jsonl") -> Path:
    path = root / task / f"{split}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    if suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    elif suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        packed = gzip.compress(text.encode()) if suffix == ".jsonl.gz" else text.encode()
        path.write_bytes(packed)
    return path


def load(root: Path, tasks: Sequence[str] = ("sst2",), seed: int = 7, **limits: Any) -> Splits:
    return sources.load(
        "local", path=root, specs=select(load_catalog(), tasks), seed=seed, **limits
    )


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".csv", ".parquet"])
def test_every_format_gives_the_same_examples(tmp_path: Path, suffix: str) -> None:
    """The format that a team keeps its rows in must not change what is trained on."""
    save(tmp_path, "sst2", "train", film(4), suffix)
    save(tmp_path, "sst2", "test", film(2, start=10), suffix)
    splits = load(tmp_path)
    assert [(e.example_id, e.query, e.answers) for e in splits.pool] == [
        (f"sst2/train/{i}", f"Film review: film number {i}", (("negative", "positive")[i % 2],))
        for i in range(4)
    ]
    assert splits.train == splits.pool
    assert [e.example_id for e in splits.test] == ["sst2/test/0", "sst2/test/1"]
    for example in [*splits.pool, *splits.test]:
        check_record(example)


def test_limits_hold_and_what_is_drawn_keeps_the_files_order(tmp_path: Path) -> None:
    """Order comes from the file, so that a diff of two data versions can be read."""
    save(tmp_path, "sst2", "train", film(60))
    save(tmp_path, "sst2", "test", film(30, start=100))
    splits = load(tmp_path, max_pool=20, max_train=8, max_test=5)
    assert [len(split) for split in splits[:3]] == [20, 8, 5]
    assert {e.example_id for e in splits.train} < {e.example_id for e in splits.pool}
    for split in splits[:3]:
        rows = [int(e.example_id.rsplit("/", 1)[1]) for e in split]
        assert rows == sorted(rows)


def test_the_draw_hangs_on_the_seed_and_on_no_other_task(tmp_path: Path) -> None:
    """Adding a task must leave the others' examples alone: their scores stay comparable."""
    save(tmp_path, "sst2", "train", film(60))
    save(tmp_path, "sst2", "test", film(30, start=100))
    save(tmp_path, "snli", "train", pair(60))
    save(tmp_path, "snli", "test", pair(30, start=100))
    alone = load(tmp_path, max_pool=20, max_train=8, max_test=5)
    again = load(tmp_path, max_pool=20, max_train=8, max_test=5)
    both = load(tmp_path, ("snli", "sst2"), max_pool=20, max_train=8, max_test=5)
    other = load(tmp_path, max_pool=20, max_train=8, max_test=5, seed=8)
    assert alone == again
    for one, two, three in zip(alone[:3], both[:3], other[:3], strict=True):
        assert one == [e for e in two if e.task == "sst2"]
        assert one != three


def test_a_larger_pool_limit_keeps_what_a_smaller_one_drew(tmp_path: Path) -> None:
    """Growing the pool adds examples; the scores of the old ones need not be thrown away."""
    save(tmp_path, "sst2", "train", film(60))
    save(tmp_path, "sst2", "test", film(3, start=100))
    small, large = (load(tmp_path, max_pool=n).pool for n in (10, 30))
    assert {e.example_id for e in small} < {e.example_id for e in large}


def test_equal_examples_are_merged_and_test_queries_kept_out_of_the_pool(tmp_path: Path) -> None:
    """A test query in the pool is its own demonstration: the figures would be a lie."""
    train = [
        {"sentence": "Fine  film", "label": 1},
        {"sentence": "fine film", "label": 1},  # equal once normalised
        {"sentence": "fine film", "label": 0},  # another answer: stays
        {"sentence": "SEEN in test", "label": 0},
        {"sentence": "another", "label": 0},
    ]
    save(tmp_path, "sst2", "train", train)
    save(tmp_path, "sst2", "test", [{"sentence": "seen in  test", "label": 1}, *film(1)])
    splits = load(tmp_path)
    assert [e.example_id for e in splits.pool] == ["sst2/train/0", "sst2/train/2", "sst2/train/4"]
    counts = splits.counts["sst2"]
    assert (counts["duplicates_merged"], counts["dropped_in_test"]) == (1, 1)
    assert counts["rows_read"] == {"train": 5, "test": 2}
    assert (counts["pool"], counts["train"], counts["test"]) == (3, 3, 2)


def leaky(root: Path) -> None:
    """Save a task of which two training rows ask a test query."""
    save(root, "sst2", "train", [*film(5), *film(2, start=100)])
    save(root, "sst2", "test", film(4, start=100))


def test_a_leak_stops_the_run_unless_its_task_is_named(tmp_path: Path) -> None:
    """Whoever does not want rows dropped must say for which task that is no mistake."""
    leaky(tmp_path)
    with pytest.raises(DataError, match=r"'sst2': 2 of its training rows.*allowed_leaks"):
        load(tmp_path, drop_test_queries=False)
    with pytest.raises(DataError, match="'sst2'"):
        load(tmp_path, drop_test_queries=False, allowed_leaks=("rte",))
    splits = load(tmp_path, drop_test_queries=False, allowed_leaks=("sst2",))
    counts = splits.counts["sst2"]
    assert (counts["kept_in_test"], counts["dropped_in_test"], len(splits.pool)) == (2, 0, 7)
    assert load(tmp_path).counts["sst2"]["kept_in_test"] == 0


def test_rows_that_are_too_long_are_counted_by_field(tmp_path: Path) -> None:
    """A passage cut before its answer explains a low score; somebody must be told of it."""
    long, short = "word " * 400, "word " * 20
    rows = [
        {"passage": text, "question": f"is it {n}", "label": 1, "idx": n}
        for n, text in enumerate([long, short, long])
    ]
    save(tmp_path, "boolq", "train", rows)
    save(tmp_path, "boolq", "test", [{**rows[1], "question": "was it"}])
    counts = load(tmp_path, ("boolq",)).counts["boolq"]
    limit = load_catalog()["boolq"].max_words
    assert counts["cut"] == {f"train: 'passage' over {limit} words": 2}


def test_a_test_query_of_one_task_is_kept_out_of_anothers_pool(tmp_path: Path) -> None:
    """MNLI-style tasks share wordings, and `scope: pool` searches all tasks."""
    save(tmp_path, "snli", "train", pair(9))
    save(tmp_path, "snli", "test", pair(9, start=100))
    save(tmp_path, "rte", "train", [{**row, "label": 0} for row in pair(12, start=100)])
    save(tmp_path, "rte", "test", [{**row, "label": 0} for row in pair(2, start=300)])
    counts = load(tmp_path, ("snli", "rte")).counts
    assert counts["rte"]["dropped_in_test"] == 9
    assert counts["snli"]["dropped_in_test"] == 0


def test_the_pool_does_not_hang_on_how_many_test_queries_are_drawn(tmp_path: Path) -> None:
    """A quick look at fewer test queries must not remake every round."""
    save(tmp_path, "sst2", "train", film(20))
    save(tmp_path, "sst2", "test", film(10))  # all of them stand in the training rows
    assert load(tmp_path, max_test=2).pool == load(tmp_path).pool
    assert len(load(tmp_path).pool) == 10


@pytest.mark.parametrize("max_train", [None, 5])
def test_the_pool_goes_to_its_file_row_by_row(max_train: int | None) -> None:
    """A pool of millions, gathered before it is written, does not fit into memory."""
    (spec,) = select(load_catalog(), ["sst2"])
    kept: dict[str, list[Example]] = {"pool": [], "train": [], "test": []}

    def rows(count: int) -> Iterator[Numbered]:
        for row in range(count):
            assert len(kept["pool"]) == row, "a row was asked for before the last one was kept"
            yield Numbered(row, Example(f"sst2/train/{row}", "sst2", f"film {row}", ("positive",)))

    test = [Numbered(0, Example("sst2/test/0", "sst2", "another", ("negative",)))]
    material = Material(spec, "sst2", rows(30), test, None, {})
    counts = divide(
        [material], lambda split, one: kept[split].append(one), seed=0, max_train=max_train
    )
    assert counts["sst2"]["train"] == len(kept["train"]) == (max_train or 30)
    assert [example.query for example in kept["pool"]] == [f"film {row}" for row in range(30)]


def test_held_out_tasks_are_in_the_pool_but_never_in_training(tmp_path: Path) -> None:
    """What is trained on can no longer show that the retriever generalises."""
    rows = [{"text": f"place {i}", "label": i % 2} for i in range(9)]
    save(tmp_path, "yelp", "train", rows)
    save(tmp_path, "yelp", "test", [{"text": "other place", "label": 1}])
    splits = load(tmp_path, ("yelp",))
    assert (len(splits.pool), len(splits.train), len(splits.test)) == (9, 0, 1)


def test_tests_that_share_training_rows_get_the_same_pool_and_teach_once(tmp_path: Path) -> None:
    """MNLI would otherwise weigh twice in training, and cost twice in LM scoring."""
    save(tmp_path, "mnli", "train", pair(40))
    save(tmp_path, "mnli_m", "test", pair(5, start=100))
    save(tmp_path, "mnli_mm", "test", pair(5, start=200))
    splits = load(tmp_path, ("mnli_m", "mnli_mm"), max_pool=10, max_train=4)
    pools = {
        task: [e.query for e in splits.pool if e.task == task] for task in ("mnli_m", "mnli_mm")
    }
    assert pools["mnli_m"] == pools["mnli_mm"]
    assert Counter(e.task for e in splits.train) == {"mnli_m": 4}
    assert len({e.example_id for e in splits.pool}) == 20
    assert Counter(e.task for e in load(tmp_path, ("mnli_mm",)).train) == {"mnli_mm": 40}


def test_a_pool_of_another_tasks_rows_is_worded_by_that_task(tmp_path: Path) -> None:
    """WSC273 has no training rows; Winogrande's have other columns."""
    grande = [
        {"sentence": f"A{i} thanked B because _ helped.", "option1": "A", "option2": "B"}
        for i in range(3)
    ]
    save(tmp_path, "winogrande", "train", [{**row, "answer": "2"} for row in grande])
    save(tmp_path, "winogrande", "test", [{**grande[0], "sentence": "x _ y", "answer": "1"}])
    save(
        tmp_path,
        "wsc273",
        "test",
        [{"text": "A met B and he left.", "pronoun": "he", "options": ["A", "B"], "label": 0}],
    )
    splits = load(tmp_path, ("wsc273", "winogrande"))
    pool = [e for e in splits.pool if e.task == "wsc273"]
    assert [(e.example_id, e.answer) for e in pool] == [
        (f"wsc273/train/{i}", "B") for i in range(3)
    ]
    assert Counter(e.task for e in splits.train) == {"winogrande": 3}


def test_empty_rows_are_left_out_and_counted_by_reason(tmp_path: Path) -> None:
    """A silent loss of rows hides a broken export; a crash on one would stop a year's data."""
    save(tmp_path, "sst2", "train", [*film(3), {"sentence": " ", "label": 1}])
    save(tmp_path, "sst2", "test", [*film(2, 50), {"sentence": "x", "label": None}])
    counts = load(tmp_path).counts["sst2"]
    assert counts["empty"] == {"train: empty 'sentence'": 1, "test: empty 'label'": 1}
    assert counts["answers"]["pool"] == {"negative": 2, "positive": 1}


def test_an_unknown_label_names_file_row_field_and_known_values(tmp_path: Path) -> None:
    """One wrong row in a million must be findable."""
    path = save(tmp_path, "sst2", "train", [*film(3), {"sentence": "x", "label": 7}])
    save(tmp_path, "sst2", "test", film(1, 50))
    with pytest.raises(TaskError) as caught:
        load(tmp_path)
    for part in (str(path), "sst2/train/3", "label is 7", "Known: 0, 1"):
        assert part in str(caught.value)


def test_a_row_that_lacks_a_column_is_named(tmp_path: Path) -> None:
    """The commonest mistake: another column name than the catalogue's."""
    save(tmp_path, "sst2", "train", [*film(1), {"text": "x", "label": 1}])
    save(tmp_path, "sst2", "test", film(1, 50))
    with pytest.raises(TaskError, match=r"sst2/train/1'.*no 'sentence'.*text, label"):
        load(tmp_path)


def test_missing_folders_and_files_are_named(tmp_path: Path) -> None:
    """The message must say which path to fill, and with what."""
    with pytest.raises(DataError, match="needs a path"):
        sources.load("local", path=None, specs=[], seed=0)
    with pytest.raises(DataError, match=r"no folder .*absent"):
        load(tmp_path / "absent")
    with pytest.raises(DataError, match=r"no folder .*sst2"):
        load(tmp_path)
    save(tmp_path, "sst2", "train", film(2))
    with pytest.raises(DataError, match=r"sst2 holds no test file.*test\.jsonl\.gz"):
        load(tmp_path)


def test_two_files_for_one_split_are_refused(tmp_path: Path) -> None:
    """Reading either of them would be a guess."""
    save(tmp_path, "sst2", "train", film(2))
    save(tmp_path, "sst2", "train", film(3), ".csv")
    save(tmp_path, "sst2", "test", film(2, 50))
    with pytest.raises(DataError, match=r"train\.jsonl, train\.csv"):
        load(tmp_path)


def test_damaged_files_are_refused_by_name(tmp_path: Path) -> None:
    """Half a download must not pass for a small data set."""
    save(tmp_path, "sst2", "test", film(2, 500))
    whole = save(tmp_path, "sst2", "train", film(300), ".jsonl.gz")
    packed = whole.read_bytes()
    whole.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match=r"train\.jsonl\.gz is a damaged or cut-off gzip"):
        load(tmp_path)
    whole.write_bytes(b"no gzip at all")
    with pytest.raises(DataError, match="damaged or cut-off gzip"):
        load(tmp_path)
    whole.write_bytes(packed[:20] + bytes(len(packed) - 20))
    with pytest.raises(DataError, match="damaged or cut-off gzip"):
        load(tmp_path)
    whole.unlink()
    for name, content, says in [
        ("train.jsonl", b'{"sentence": "x", "label": 1}\n{"sente', "line 2 is not JSON"),
        ("train.jsonl", b"[1, 2]\n", "line 1: expected a JSON object"),
        ("train.jsonl", b'{"sentence": "\xff"}\n', "not UTF-8"),
        ("train.csv", b"sentence,label\na,b,1\n", "line 2: the row has more or fewer fields"),
        ("train.csv", b"sentence,label\na\n", "line 2: the row has more or fewer fields"),
        ("train.csv", b'sentence,label\n"a\n', "is not CSV"),
        ("train.parquet", b"PAR1 and no more", "not a readable Parquet file"),
    ]:
        path = tmp_path / "sst2" / name
        path.write_bytes(content)
        with pytest.raises(DataError, match=says):
            load(tmp_path)
        path.unlink()


@pytest.mark.parametrize(
    ("train", "test", "split"),
    [([], film(1), "pool"), (film(2), [], "test"), (film(1), film(1), "pool")],
)
def test_a_task_without_examples_is_refused_with_its_counts(
    tmp_path: Path, train: Rows, test: Rows, split: str
) -> None:
    """An empty task would count as 0 in every average, or crash the last step."""
    save(tmp_path, "sst2", "train", train)
    save(tmp_path, "sst2", "test", test)
    with pytest.raises(TaskError, match=rf"'sst2': its {split} has no example left.*rows_read"):
        load(tmp_path)


def test_available_lists_the_tasks_that_a_folder_can_fill(tmp_path: Path) -> None:
    """With no list of tasks given, all that are there are run, and no half one."""
    catalog = load_catalog()
    with pytest.raises(DataError, match="holds no task"):
        sources.available("local", tmp_path, catalog)
    save(tmp_path, "sst2", "train", film(2))
    save(tmp_path, "sst2", "test", film(2))
    save(tmp_path, "snli", "train", pair(2))  # no test file
    save(tmp_path, "mnli", "train", pair(2))
    save(tmp_path, "mnli_m", "test", pair(2))
    assert sources.available("local", tmp_path, catalog) == ["sst2", "mnli_m"]


def test_the_sample_set_loads_within_its_limits() -> None:
    """The demo and every new user start here."""
    catalog = load_catalog()
    names = sources.available("sample", None, catalog)
    specs = select(catalog, names)
    whole = sources.load("sample", path=None, specs=specs, seed=0)
    cut = sources.load(
        "sample", path=None, specs=specs, seed=0, max_pool=20, max_train=6, max_test=4
    )
    assert {e.task for e in whole.pool} == {e.task for e in whole.test} == set(names)
    assert {e.task for e in whole.train} == {spec.name for spec in specs if not spec.held_out}
    assert {e.example_id for e in cut.train} <= {e.example_id for e in cut.pool}
    for name in names:
        counts = cut.counts[name]
        assert (counts["pool"], counts["test"]) == (20, 4)
        assert counts["train"] == (0 if catalog[name].held_out else 6)
        assert counts["dropped_in_test"] == counts["duplicates_merged"] == 0


def test_the_sample_set_refuses_tasks_that_it_lacks() -> None:
    """The answer to `tasks: [sst2]` with the sample set is another source, not a crash."""
    with pytest.raises(TaskError, match=r"'sst2' is not in the sample set.*local"):
        sources.load("sample", path=None, specs=select(load_catalog(), ["sst2"]), seed=0)
