"""For all tests: one real MLflow store (its database takes seconds) and one tiny retriever."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from exemplar.data.io import write_json, write_records
from exemplar.records import Example, Outcome
from exemplar.tracking.store import open_store

ENTRY_SCRIPT = Path(__file__).parents[3] / "mlflow" / "served_model.py"
WORDS = ["sun", "rain", "snow", "wind", "cat", "dog", "cow", "hen", "red", "blue", "is", "it", "a"]


class DyingClient:
    """An MLflow client whose process is killed when it writes for the (`writes` + 1)th time."""

    def __init__(self, client, writes):
        self._client = client
        self._writes = writes

    def __getattr__(self, name):
        method = getattr(self._client, name)
        if not name.startswith(("set_", "delete_", "create_", "log_", "update_")):
            return method

        def write(*args, **kwargs):
            if self._writes == 0:
                raise KeyboardInterrupt
            self._writes -= 1
            return method(*args, **kwargs)

        return write


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mlflow")
    return open_store(f"sqlite:///{folder / 'mlflow.db'}", "exemplar")


@pytest.fixture(scope="session")
def pool():
    """Examples of two tasks; weather has two with the same query but for case and spaces."""
    rows = [("weather", f"is it {word} a {other}", word) for word in WORDS[:4] for other in WORDS]
    rows += [("animals", f"a {word} is {other}", other) for word in WORDS[4:8] for other in WORDS]
    rows.append(("weather", "Is it  sun a sun", "rain"))
    return [
        Example(f"{task}-{number}", task, query, (answer,))
        for number, (task, query, answer) in enumerate(rows)
    ]


@pytest.fixture(scope="session")
def files(tmp_path_factory, save_bert, pool):
    """What a round leaves behind: retriever/, pool.parquet, outcomes.parquet, metrics.json."""
    from exemplar.retrieval.encoder import Encoder

    root = tmp_path_factory.mktemp("round")
    write_records(root / "pool.parquet", Example, pool, made_from={})
    write_records(root / "outcomes.parquet", Outcome, outcomes(right=30), made_from={"test": "t"})
    write_records(root / "better.parquet", Outcome, outcomes(right=45), made_from={"test": "t"})
    write_json(root / "metrics.json", {"average": {"value": 60.0}})
    encoder = save_bert(root / "encoder", WORDS, layers=1, pooler=False)
    Encoder.load(encoder).save(root / "retriever")
    return SimpleNamespace(
        retriever=root / "retriever",
        pool=root / "pool.parquet",
        outcomes=root / "outcomes.parquet",
        better=root / "better.parquet",
        metrics=root / "metrics.json",
    )


def outcomes(right: int) -> list[Outcome]:
    return [
        Outcome(f"t{i}", "weather", "", "sun", 100.0 * (i < right), ("weather-1",), 0)
        for i in range(50)
    ]


@pytest.fixture(scope="session")
def dying():
    return DyingClient


@pytest.fixture(scope="session")
def entry_script():
    return ENTRY_SCRIPT
