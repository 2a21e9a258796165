"""Claims about the source 'hub', on a mirror with the hub's own layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from exemplar.data import sources
from exemplar.data.sources import Splits
from exemplar.errors import DataError
from exemplar.tasks.spec import load_catalog, select


def parquet(path: Path, rows: list[dict[str, Any]], **features: Any) -> None:
    import datasets

    path.parent.mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_list(rows)
    for column, feature in features.items():
        table = table.cast_column(column, feature)
    table.to_parquet(path)


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data sets in every layout: configurations in a README, converted Parquet, tests alone."""
    # Not at the top: on import the library reads the environment that the tests have yet to set.
    datasets = pytest.importorskip("datasets", reason="needs exemplar[hub]")
    root = tmp_path_factory.mktemp("mirror")
    glue = root / "nyu-mll/glue"
    label = datasets.ClassLabel(names=["negative", "positive"])
    for split, count in (("train", 6), ("validation", 3)):
        rows = [{"sentence": f"{split} film {i}", "label": i % 2} for i in range(count)]
        parquet(glue / f"sst2/{split}-00000-of-00001.parquet", rows, label=label)
    (glue / "README.md").write_text(
        "---\nconfigs:\n- config_name: sst2\n  data_files:\n"
        "  - split: train\n    path: sst2/train-*\n"
        "  - split: validation\n    path: sst2/validation-*\n---\n"
    )
    tweets = root / "stanfordnlp/sentiment140/sentiment140"
    for split, labels in (("train", [0, 4, 0, 4]), ("test", [0, 2, 4])):
        rows = [{"text": f"{split} tweet {i}", "sentiment": s} for i, s in enumerate(labels)]
        parquet(tweets / split / "0000.parquet", rows)
    blanks = root / "allenai/winogrande/winogrande_xl"
    for split in ("train", "validation"):
        rows = [
            {"sentence": f"{split} {i}: _ fell.", "option1": "Ann", "option2": "Bo", "answer": "2"}
            for i in range(3)
        ]
        parquet(blanks / f"{split}.parquet", rows)
    (blanks.parent / "README.md").write_text(
        "---\nconfigs:\n- config_name: winogrande_xl\n  data_files:\n"
        "  - split: train\n    path: winogrande_xl/train.parquet\n"
        "  - split: validation\n    path: winogrande_xl/validation.parquet\n---\n"
    )
    row = {"text": "Ann saw Bo when she fell.", "pronoun": "she", "options": ["Ann", "Bo"]}
    parquet(root / "lighteval/winograd_wsc/wsc273/test.parquet", [{**row, "label": 1}])
    (root / "lighteval/winograd_wsc/README.md").write_text(
        "---\nconfigs:\n- config_name: wsc273\n  data_files:\n"
        "  - split: test\n    path: wsc273/test.parquet\n---\n"
    )
    return root


def load(path: Path, *tasks: str) -> Splits:
    return sources.load("hub", path=path, specs=select(load_catalog(), tasks), seed=0)


def test_rows_of_a_configuration_become_examples(mirror: Path) -> None:
    """The hub's label numbers, splits and columns are what the catalogue was written for."""
    splits = load(mirror, "sst2")
    assert [(e.query, e.answer) for e in splits.test] == [
        (f"Film review: validation film {i}", ("negative", "positive")[i % 2]) for i in range(3)
    ]
    assert len(splits.pool) == len(splits.train) == 6
    assert splits.counts["sst2"]["rows_read"] == {"train": 6, "test": 3}
    assert splits.counts["sst2"]["commit"] is None  # a mirror has none


def test_the_parquet_branch_stands_in_for_a_loading_script(mirror: Path) -> None:
    """Scripts are no longer run: without the converted files these tasks could not be had."""
    splits = load(mirror, "sentiment140")
    assert [e.answer for e in splits.test] == ["negative", "positive"]
    assert splits.counts["sentiment140"]["empty"] == {"test: left out: sentiment 2": 1}


def test_a_task_without_training_rows_gets_those_of_its_teacher(mirror: Path) -> None:
    """WSC273 has only tests; its demonstrations are Winogrande's."""
    splits = load(mirror, "wsc273")
    assert [e.task for e in splits.pool] == ["wsc273"] * 3
    assert splits.pool[0].choices == ("Ann", "Bo")
    assert [e.answer for e in splits.test] == ["Bo"]
    assert splits.train == []


def test_every_task_can_be_asked_of_the_hub() -> None:
    """A task without an address would fail only when somebody has waited for the others."""
    catalog = load_catalog()
    names = sources.available("hub", None, catalog)
    assert len(names) == 30
    for name in names:
        teacher = catalog[name].train_spec or catalog[name]
        assert catalog[name].hub.keys() >= {"id", "test"}
        assert "train" in teacher.hub
        assert "/" in catalog[name].hub["id"], "bare names are being replaced on the hub"


def test_what_cannot_be_had_is_named_with_what_to_do(mirror: Path, tmp_path: Path) -> None:
    """The library's own messages name neither the task nor the way out."""
    with pytest.raises(DataError, match=r"(?s)task 'qqp': nyu-mll/glue/qqp/\w+ cannot.*mirror"):
        load(mirror, "qqp")
    with pytest.raises(DataError, match=r"there is no folder .*nowhere"):
        load(tmp_path / "nowhere", "sst2")


def test_without_network_and_mirror_the_error_says_so() -> None:
    """Offline is how clusters run: a traceback out of an HTTP library helps nobody."""
    with pytest.raises(DataError, match=r"task 'ag_news': fancyzhx/ag_news\S+ cannot be had"):
        sources.load("hub", path=None, specs=select(load_catalog(), ["ag_news"]), seed=0)
