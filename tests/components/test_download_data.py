"""Claims about download_data: the data folder is sealed, split without leaks, and repeatable."""

import hashlib
import json
from collections import Counter

import pyarrow.parquet as pq
import pytest

from exemplar import steps
from exemplar.config import load_params
from exemplar.data.dataset import read_dataset
from exemplar.data.io import fingerprint, read_records
from exemplar.errors import DataError, TaskError
from exemplar.records import Example
from exemplar.tasks.spec import load_catalog

SPLITS = ("pool", "train", "test")


@pytest.fixture(scope="module")
def manifest(workspace):
    return json.loads((workspace.layout.data / "manifest.json").read_text())


def test_the_manifest_seals_every_file(workspace, manifest):
    """Steps that run on files of two different downloads would compare what cannot be compared."""
    for name in SPLITS:
        content = (workspace.layout.data / f"{name}.parquet").read_bytes()
        assert manifest["sha256"][name] == hashlib.sha256(content).hexdigest()


def test_the_manifests_counts_are_those_of_the_files(workspace, manifest):
    """Counts that do not hold would hide a task that lost its examples."""
    for name in SPLITS:
        column = pq.read_table(workspace.layout.data / f"{name}.parquet")["task"].to_pylist()
        found = Counter(column)
        assert {t: counts[name] for t, counts in manifest["counts"].items()} == {
            task: found[task] for task in manifest["tasks"]
        }


def test_sizes_stay_within_the_settings(workspace, manifest):
    """More examples than asked for cost LM time that nobody planned."""
    settings = workspace.profile.download_data
    for counts in manifest["counts"].values():
        assert counts["pool"] <= settings.max_pool
        assert counts["train"] <= settings.max_train
        assert 0 < counts["test"] <= settings.max_test


def test_training_queries_are_pool_examples_and_test_queries_are_not(workspace):
    """A test query in the pool would be answered by its own demonstration."""
    pool, train, test = (
        {e.example_id: e for e in read_records(workspace.layout.data / f"{name}.parquet", Example)}
        for name in SPLITS
    )
    assert all(pool[name] == example for name, example in train.items())
    assert not set(pool) & set(test)

    def plain(example):
        return " ".join(example.query.casefold().split())

    assert not {plain(e) for e in pool.values()} & {plain(e) for e in test.values()}


def test_held_out_tasks_are_in_the_pool_and_the_test_but_never_in_training(workspace):
    """Training on them would turn the claim of generalisation into a lie."""
    dataset, catalog = workspace.dataset, load_catalog()
    held_out = {task for task in dataset.tasks if catalog[task].held_out}
    assert held_out == {"museum_marks"}
    assert not held_out & {example.task for example in dataset.train}
    assert held_out <= {example.task for example in dataset.pool}
    assert held_out <= {example.task for example in dataset.test}


def test_the_same_settings_give_the_same_bytes_and_another_seed_other_texts(workspace, tmp_path):
    """Without that, DVC's cache and every comparison of two runs would be worth nothing."""
    first = workspace.layout.data
    steps.download_data(workspace.profile, data=tmp_path / "again")
    for name in (*(f"{split}.parquet" for split in SPLITS), "manifest.json"):
        assert (tmp_path / "again" / name).read_bytes() == (first / name).read_bytes()
    other = workspace.profile.model_copy(update={"seed": workspace.profile.seed + 1})
    steps.download_data(other, data=tmp_path / "other")
    assert (tmp_path / "other/pool.parquet").read_bytes() != (first / "pool.parquet").read_bytes()


def test_a_local_folder_is_a_source_too(workspace, tmp_path):
    """Users come with their own labelled examples: that is what the tool is for."""
    for split, count in (("train", 8), ("test", 4)):
        path = tmp_path / "raw" / "sst2" / f"{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [
            {
                "sentence": f"{split} film number {i} was {'fine' if i % 2 else 'dull'}",
                "label": i % 2,
            }
            for i in range(count)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = workspace.profile.download_data.model_copy(
        update={"source": "local", "path": str(tmp_path / "raw"), "tasks": None, "max_train": 6}
    )
    profile = workspace.profile.model_copy(update={"download_data": settings})
    figures = steps.download_data(profile, data=tmp_path / "data")
    assert figures == {"tasks": 1, "pool": 8, "train": 6, "test": 4}
    written = json.loads((tmp_path / "data" / "manifest.json").read_text())
    assert written["tasks"] == ["sst2"]
    assert str(tmp_path) not in json.dumps(written)  # one's own folders stay out of shared data


OWN_TASK = """
parcel_mood:
  category: mine
  kind: classification
  metric: accuracy
  description: Is a parcel's comment glad or sad?
  query: ["Comment: {text}", "{text}\\nGlad or sad?"]
  label: mood
  labels: [glad, sad]
"""


@pytest.fixture
def own_source(tmp_path):
    """A folder with one's own task: ten lines of YAML and two files."""
    folder = tmp_path / "mine"
    (folder / "parcel_mood").mkdir(parents=True)
    (folder / "tasks.yaml").write_text(OWN_TASK)
    for split, count in (("train", 6), ("test", 2)):
        rows = [f"{split} parcel {i},{('glad', 'sad')[i % 2]}\n" for i in range(count)]
        (folder / "parcel_mood" / f"{split}.csv").write_text("text,mood\n" + "".join(rows))
    return folder


def own_profile(workspace, folder, **changes):
    update = {"source": "local", "path": str(folder), "tasks": None, **changes}
    settings = workspace.profile.download_data.model_copy(update=update)
    return workspace.profile.model_copy(update={"download_data": settings})


def test_a_task_of_ones_own_goes_along_with_its_data(workspace, own_source, tmp_path):
    """Every later step needs its labels and metric, long after the source folder has moved."""
    steps.download_data(own_profile(workspace, own_source), data=tmp_path / "data")
    (own_source / "tasks.yaml").unlink()
    dataset = read_dataset(tmp_path / "data")
    assert dataset.tasks == ["parcel_mood"]
    assert dataset.specs["parcel_mood"].labels == ("glad", "sad")
    assert dataset.classification_tasks == {"parcel_mood"}
    assert dataset.test[0].query == "Comment: test parcel 0"


def test_another_wording_is_one_number(workspace, own_source, tmp_path):
    """Whether a result hangs on the prompt's wording should be cheap to find out."""
    steps.download_data(own_profile(workspace, own_source, wording=1), data=tmp_path / "data")
    dataset = read_dataset(tmp_path / "data")
    assert dataset.test[0].query == "test parcel 0\nGlad or sad?"
    assert dataset.pool[0].query == "train parcel 0\nGlad or sad?"
    with pytest.raises(TaskError, match="'parcel_mood' has no wording 2; it has 2"):
        steps.download_data(own_profile(workspace, own_source, wording=2), data=tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_a_failed_download_leaves_the_old_folder_whole(workspace, tmp_path, write_params):
    """A run that lost its data to a typing error in a path would have to start over."""
    steps.download_data(workspace.profile, data=tmp_path / "data")
    before = {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()}
    changes = {"download_data.source": "local", "download_data.path": str(tmp_path / "nowhere")}
    profile = load_params(write_params(tmp_path / "params.yaml", changes)).active
    with pytest.raises(DataError, match="there is no folder"):
        steps.download_data(profile, data=tmp_path / "data")
    assert {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()} == before


def test_the_component_writes_the_same_data(workspace, component):
    """Data that differ by runner would make two champions that cannot be compared."""
    assert fingerprint(component("download_data")["data"]) == fingerprint(workspace.layout.data)
