"""Claims about the data folder: read as it was sealed, or not at all."""

import json

import pytest

from exemplar.data.dataset import read_dataset, write_dataset
from exemplar.data.io import read_records, write_records
from exemplar.errors import DataError
from exemplar.records import Example

POOL = [Example(f"p{n}", "sst2", f"film {n}", ("Positive",)) for n in range(4)]
TEST = [Example(f"t{n}", "snli", f"question {n}", ("Yes",)) for n in range(2)]
MANIFEST = {"source": "local", "tasks": ["snli", "sst2"], "counts": {}}


def write(folder, pool=POOL):
    write_dataset(folder, pool=pool, train=pool[:2], test=TEST, manifest=MANIFEST)


def test_what_was_written_comes_back(tmp_path):
    write(tmp_path / "data")
    dataset = read_dataset(tmp_path / "data")
    assert (list(dataset.pool), dataset.train, dataset.test) == (POOL, POOL[:2], TEST)
    assert dataset.pool_by_id["p3"] == POOL[3]
    assert dataset.test_by_id["t1"] == TEST[1]
    assert dataset.tasks == ["snli"]  # those with test examples
    assert set(dataset.specs) == {"snli", "sst2"}
    assert dataset.classification_tasks == {"snli", "sst2"}


def test_the_fingerprint_is_that_of_the_contents(tmp_path):
    """Equal data must count as equal, and any change as another."""
    write(tmp_path / "one")
    write(tmp_path / "two")
    write(tmp_path / "other", pool=[*POOL[:3], Example("p3", "sst2", "film 3", ("Negative",))])
    one, two, other = (read_dataset(tmp_path / n).fingerprint for n in ("one", "two", "other"))
    assert one == two != other


@pytest.mark.parametrize("name", ["pool", "train", "test"])
def test_a_file_of_another_download_is_refused(tmp_path, name):
    """A test set that changed after the pool was cleaned of it would leak into the pool."""
    write(tmp_path / "data")
    path = tmp_path / "data" / f"{name}.parquet"
    write_records(path, Example, read_records(path, Example)[:1], made_from={})
    with pytest.raises(DataError, match=rf"{name}\.parquet is not the file that .* seals"):
        read_dataset(tmp_path / "data")


@pytest.mark.parametrize("name", ["pool.parquet", "test.parquet", "manifest.json"])
def test_a_missing_file_is_named(tmp_path, name):
    write(tmp_path / "data")
    (tmp_path / "data" / name).unlink()
    with pytest.raises(DataError, match=f"{name} does not exist"):
        read_dataset(tmp_path / "data")


@pytest.mark.parametrize("manifest", [[], {}, {"sha256": {}, "tasks": []}])
def test_a_manifest_of_something_else_is_refused(tmp_path, manifest):
    """A folder that merely looks like data must not be taken for it."""
    write(tmp_path / "data")
    (tmp_path / "data" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="expected the manifest of download_data"):
        read_dataset(tmp_path / "data")


def test_a_failed_write_leaves_the_old_folder(tmp_path):
    """Half a data folder would pass for a whole one until the first step reads it."""
    write(tmp_path / "data")
    with pytest.raises(DataError, match="nothing to write"):
        write_dataset(tmp_path / "data", pool=POOL, train=POOL, test=[], manifest=MANIFEST)
    assert read_dataset(tmp_path / "data").train == POOL[:2]
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
