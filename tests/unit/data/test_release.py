"""Claims about the released files: read without loss, numbered as there, refused if wrong."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from exemplar.data import download
from exemplar.data.dataset import read_dataset
from exemplar.data.io import read_json, read_records
from exemplar.data.release.fetch import fetch
from exemplar.data.release.write import write_release
from exemplar.errors import DataError, TaskError
from exemplar.records import Candidates, Rewards

SETTINGS = {
    "source": "released",
    "tasks": None,
    "max_pool": None,
    "max_train": None,
    "max_test": None,
    "wording": 0,
    "scores": True,
}


def fill(folder: Path, data: Path, **settings: object) -> dict[str, int]:
    return download.fill(data, {**SETTINGS, "path": str(folder), **settings}, seed=1, cache=data)


@pytest.fixture(scope="module")
def made(release: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    root = tmp_path_factory.mktemp("made")
    folder = release.write(root / "files")
    fill(folder, root / "data")
    rows = {path.name.split(".")[0]: rows_of(path) for path in folder.iterdir()}
    return SimpleNamespace(folder=folder, data=root / "data", rows=rows)


def rows_of(path: Path) -> list[dict[str, object]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.mark.parametrize("odd", [False, True], ids=["as released", "with rows out of the ordinary"])
def test_the_files_come_back_byte_for_byte(
    release: SimpleNamespace, tmp_path: Path, odd: bool
) -> None:
    """Whoever checks our work by the authors' code must know that it reads the authors' data."""
    folder = release.write(tmp_path / "files", odd=odd)
    fill(folder, tmp_path / "data")
    kept = read_json(tmp_path / "data/released/kept.json")
    assert bool(kept) == odd
    rows = write_release(tmp_path / "data", tmp_path / "back")
    assert len(rows) == 6
    for path in folder.iterdir():
        assert release.content(tmp_path / "back" / path.name) == release.content(path), path.name


def test_what_is_no_longer_the_release_is_not_passed_off_as_it(
    release: SimpleNamespace, tmp_path: Path
) -> None:
    """The authors' code would be run on files that only look like theirs."""
    for seed in (1, 2):
        fill(release.write(tmp_path / f"files{seed}", seed=seed), tmp_path / f"data{seed}")
    changed = tmp_path / "data1/released/test.parquet"
    changed.write_bytes((tmp_path / "data2/released/test.parquet").read_bytes())
    with pytest.raises(DataError, match=r"test.jsonl.gz does not come out as it was read"):
        write_release(tmp_path / "data1", tmp_path / "back")
    assert not (tmp_path / "back/test.jsonl.gz").exists()
    (tmp_path / "data1/manifest.json").write_text('{"source": "sample"}')
    with pytest.raises(DataError, match="was made from a source other than files of the release"):
        write_release(tmp_path / "data1", tmp_path / "back")


def test_a_query_is_its_own_passage_with_all_that_is_known_of_it(made: SimpleNamespace) -> None:
    """Scores name passages by place: one place off, and every query learns from its neighbour's."""
    dataset = read_dataset(made.data)
    assert len(dataset.pool) == len(made.rows["passages"])
    by_query = {row["query"]: row for row in made.rows["train"]}
    for example in dataset.train:
        row = by_query[example.query]
        passage = made.rows["passages"][int(example.example_id)]
        assert passage["id"] == example.example_id
        assert passage["contents"] == example.text
        assert dataset.pool_by_id[example.example_id] == example
        if len(row["options"]) > 1:
            assert example.choices == tuple(row["options"])
            assert example.gold == "AB".index(row["answers"][0])
        else:
            assert example.answers == tuple(row["answers"])


def test_held_out_tasks_teach_nothing_but_stay_in_the_pool(made: SimpleNamespace) -> None:
    """The release has training rows and rewards of the tasks that the paper holds out."""
    dataset = read_dataset(made.data)
    assert "qnli" in {row["task_name"] for row in made.rows["kd_bm25_train"]}
    assert "qnli" not in {example.task for example in dataset.train}
    assert "qnli" in {example.task for example in dataset.pool}
    rewards = read_records(made.data / "released/r1/rewards.parquet", Rewards)
    taught = dataset.of_training(rewards)
    assert {dataset.pool_by_id[one.query_id].task for one in taught} == {
        e.task for e in dataset.train
    }
    assert len(taught) == len(dataset.train) < len(rewards)


def test_scores_stay_with_their_passages(made: SimpleNamespace) -> None:
    """A score beside another passage's id is a label swapped in silence."""
    starts = {}
    for row in made.rows["passages"]:
        starts.setdefault(row["task_name"], int(row["id"]))
    for name, kind, path in (
        ("bm25_train", Candidates, "r1/candidates.parquet"),
        ("kd_bm25_train", Rewards, "r1/rewards.parquet"),
        ("kd_it2_train", Rewards, "r2/rewards.parquet"),
    ):
        records = read_records(made.data / "released" / path, kind)
        for row, record in zip(made.rows[name], records, strict=True):
            task, _, number = str(row["query_id"]).rsplit("_", 2)
            assert record.query_id == str(starts[task] + int(number))
            assert list(record.candidate_ids) == row["doc_ids"]
            scores = record.rewards if isinstance(record, Rewards) else record.similarities
            assert list(scores) == row["doc_scores"]


def test_labels_are_those_of_the_data_and_a_task_without_rows_searches_anothers(
    made: SimpleNamespace,
) -> None:
    """Ours says "yes" where the release says "Yes": a model held to ours is always wrong."""
    dataset = read_dataset(made.data)
    assert set(dataset.specs["mnli_m"].labels) == {"Yes", "Maybe", "No"}
    assert dataset.specs["mnli"].labels == dataset.specs["mnli_m"].labels
    assert {"mnli", "ag_news"} <= dataset.classification_tasks
    homes = {
        q.task: s.task for q, s in zip(dataset.test, dataset.searching(dataset.test), strict=True)
    }
    assert homes == {
        **{task: task for task in homes},
        "mnli_m": "mnli",
        "wsc273": "winogrande",
    }


def test_a_part_of_the_tasks_comes_with_the_rows_that_it_needs(
    release: SimpleNamespace, tmp_path: Path
) -> None:
    """Half of 6.3 million passages is one task's; who wants another should not read them."""
    folder = release.write(tmp_path / "files")
    counts = fill(folder, tmp_path / "data", tasks=["mnli_m", "copa"], max_train=5, max_test=2)
    dataset = read_dataset(tmp_path / "data")
    assert {example.task for example in dataset.pool} == {"mnli", "copa"}
    assert counts == {"tasks": 3, "pool": 48, "train": 10, "test": 4}
    told = json.loads((tmp_path / "data/manifest.json").read_text())["counts"]
    assert told["copa"]["kept_in_test"] == 0
    rewards = read_records(tmp_path / "data/released/r1/rewards.parquet", Rewards)
    assert all(i in dataset.pool_by_id for one in rewards for i in one.candidate_ids)
    with pytest.raises(DataError, match="only all of it can be written back"):
        write_release(tmp_path / "data", tmp_path / "back")


def edit(
    name: str, row: int, change: Callable[[dict[str, object]], object]
) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / f"{name}.jsonl.gz"
        rows = rows_of(path)
        change(rows[row])
        with gzip.open(path, "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(each) + "\n" for each in rows)

    return apply


def test_test_queries_among_the_passages_stay_and_are_counted(
    release: SimpleNamespace, tmp_path: Path
) -> None:
    """Scores name passages by their place, so none may go; but the figures must be read with it."""
    folder = release.write(tmp_path / "files")
    asked = next(row for row in rows_of(folder / "train.jsonl.gz") if row["task_name"] == "copa")
    tests = rows_of(folder / "test.jsonl.gz")
    place = next(n for n, row in enumerate(tests) if row["task_name"] == "copa")
    edit("test", place, lambda row: row.update(query=asked["query"]))(folder)
    fill(folder, tmp_path / "data")
    told = json.loads((tmp_path / "data/manifest.json").read_text())["counts"]
    leaks = {task: of_task["kept_in_test"] for task, of_task in told.items()}
    assert {task: number for task, number in leaks.items() if number} == {"copa": 1}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            edit("passages", 7, lambda row: row.update(id="8")),
            r"passages.*row 7.*must be its place",
        ),
        (edit("passages", 7, lambda row: row.update(task_name="copa")), "must lie together"),
        (edit("passages", 7, lambda row: row.update(contents=None)), "row 7.*must be a text"),
        (edit("train", 2, lambda row: row.update(query="another")), "files do not belong together"),
        (edit("train", 2, lambda row: row.update(query_id="ag_news_train_9999")), "beyond the 168"),
        (edit("train", 2, lambda row: row.update(query_id="2")), "expected ag_news_train_<row>"),
        (
            edit("train", 2, lambda row: row.pop("options")),
            "train.*row 2.*expected answers, options",
        ),
        (
            edit("train", 20, lambda row: row.update(answers=["C"])),
            "one letter for one of 2 options",
        ),
        (
            edit("kd_it2_train", 1, lambda row: row["doc_ids"].append("168")),
            "there are 168 passages",
        ),
        (
            edit("kd_it2_train", 1, lambda row: row.update(doc_scores="x")),
            "must be a list of numbers",
        ),
        (lambda folder: (folder / "test.jsonl.gz").unlink(), "lacks test.jsonl.gz"),
    ],
)
def test_files_that_contradict_themselves_are_refused(
    release: SimpleNamespace, tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    """Silently shifted ids would train a retriever on other examples' rewards."""
    folder = release.write(tmp_path / "files")
    spoil(folder)
    with pytest.raises(DataError, match=message):
        fill(folder, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_an_unknown_task_is_named(release: SimpleNamespace, tmp_path: Path) -> None:
    folder = release.write(tmp_path / "files")
    path = folder / "test.jsonl.gz"
    rows = [
        {**row, "task_name": row["task_name"].replace("wsc273", "riddles")} for row in rows_of(path)
    ]
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    with pytest.raises(TaskError, match="no task 'rte'; it has ag_news, copa"):
        fill(folder, tmp_path / "data", tasks=["copa", "rte"])
    with pytest.raises(TaskError, match="a task 'riddles' that the catalogue does not know"):
        fill(folder, tmp_path / "data")


def test_what_the_hubs_cache_holds_is_read_and_its_commit_recorded(
    release: SimpleNamespace, tmp_path: Path
) -> None:
    """Where a cluster has no network, the files are fetched beforehand."""
    commit, cached = "c0ffee" * 6 + "beef", tmp_path / "hub/datasets--owner--name"
    release.write(cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text(commit)
    code = (
        "from exemplar.data.release.fetch import fetch\n"
        "files, commit = fetch('hf://datasets/owner/name', scores=True)\n"
        "print(commit, *sorted(files))\n"
    )
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    names = ["bm25_train", "kd_bm25_train", "kd_it2_train", "passages", "test", "train"]
    assert done.stdout.split() == [commit, *names]


def test_without_a_path_the_hub_is_asked_and_says_so_where_it_cannot_be(tmp_path: Path) -> None:
    """Tests run offline, so this is the message that a user without network reads."""
    with pytest.raises(
        DataError, match=r"intfloat/llm-retriever-tasks.*cannot be had from the hub"
    ):
        fetch(None, scores=False)
    with pytest.raises(DataError, match=r"owner/name .abc. cannot be had"):
        fetch("hf://datasets/owner/name@abc", scores=False)
