"""Claims about registered retrievers, on a real SQLite store and a tiny encoder."""

import json
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

from exemplar.data.io import read_records
from exemplar.errors import ModelError, RegistryError
from exemplar.records import Outcome
from exemplar.registry import aliases, story, versions
from exemplar.registry.bundle import SearchSettings
from exemplar.retrieval.demonstrations import Rules
from exemplar.serving import Retriever
from exemplar.tracking import runs

NAME = "exemplar-retriever"


@pytest.fixture(scope="module")
def run_id(store):
    return runs.log_run(
        store,
        name="round-1",
        kind="round",
        round=1,
        params={"round": 1, "lm.ref": "lm", "kd_training.init": "encoder"},
        metrics={"eval/average": 60.0, "eval_low/average": 50.0, "eval_high/average": 70.0},
        datasets=[runs.Dataset("tickets", Path("t.parquet"), "0123456789abcdef", "test")],
    )


@pytest.fixture(scope="module")
def round_one(files, run_id, entry_script):
    return {
        "run_id": run_id,
        "round": 1,
        "retriever": files.retriever,
        "pool": files.pool,
        "outcomes": files.outcomes,
        "metrics": files.metrics,
        "entry_script": entry_script,
        "fingerprints": {"test": "t" * 64, "pool": "p" * 64},
        "search": SearchSettings(num_shots=3, rules=Rules(balance_labels=True)),
    }


@pytest.fixture(scope="module")
def registered(store, round_one, tmp_path_factory):
    """Version 1, registered and promoted, and the folder that it downloads to."""
    version = versions.register(store, NAME, **round_one)
    before = aliases.aliases_of(store, NAME)
    aliases.promote(store, NAME, version)
    folder = versions.fetch(store, f"models:/{NAME}@champion", tmp_path_factory.mktemp("fetched"))
    return SimpleNamespace(version=version, aliases=before, folder=folder)


def test_a_new_version_is_challenger(registered):
    """Nothing would say which version the gate is to look at."""
    assert registered.aliases == {"challenger": registered.version}


def test_registering_the_same_files_again_gives_the_same_version(store, round_one, registered):
    """A repeated promotion step would register copies, and demote the champion to challenger."""
    assert versions.register(store, NAME, **round_one) == registered.version
    assert aliases.aliases_of(store, NAME) == {"champion": registered.version}


def test_no_object_is_pickled(registered):
    """Loading a pickle runs whatever code it holds."""
    names = [path.name for path in registered.folder.rglob("*") if path.is_file()]
    assert {"MLmodel", "served_model.py", "index.faiss", "model.safetensors"} <= set(names)
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".bin", ".pt"))]
    for path in registered.folder.rglob("*"):
        if path.is_file():
            # Pickle protocols 2 and up begin with byte 0x80 and the protocol's number.
            head = path.read_bytes()[:2]
            assert not (head[:1] == b"\x80" and head[1:] <= b"\x05"), path


def test_the_requirements_name_released_packages_and_not_the_project(registered):
    """An index may hold a stranger's package under the project's name."""
    lines = (registered.folder / "requirements.txt").read_text().split()
    assert not [line for line in lines if "+" in line or line.startswith("exemplar")]
    assert [line for line in lines if line.startswith("torch==")]


def test_the_champion_comes_with_its_outcomes_and_fingerprints(store, files, registered):
    """The gate would compare with figures measured on other data."""
    champion = versions.champion(store, NAME)
    assert champion.outcomes == read_records(files.outcomes, Outcome)
    assert champion.record.version == registered.version
    assert champion.record.fingerprints == {"test": "t" * 64, "pool": "p" * 64}
    assert champion.record.average == 60.0


def test_without_a_champion_there_is_none(store):
    """The first promotion has nothing to compare with, and must not fail for that."""
    assert versions.champion(store, "nobody") is None
    assert versions.list_versions(store, "nobody") == []


def test_the_model_answers_as_the_retriever_does(registered):
    """What is served would not be what was evaluated."""
    import pandas as pd
    from mlflow.exceptions import MlflowException
    from mlflow.pyfunc import load_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's own, about type hints and versions
        model = load_model(str(registered.folder))
    frame = pd.DataFrame({"query": ["is it rain", "a cat"], "task": ["weather", None]})
    answers = model.predict(frame, params={"k": 2})
    retriever = Retriever.load(registered.folder)
    expected = [retriever.select("is it rain", task="weather", k=2), retriever.select("a cat", k=2)]
    assert list(answers["prompt"]) == [selection.prompt() for selection in expected]
    for found, selection in zip(answers["demonstrations"], expected, strict=True):
        assert [item["example_id"] for item in found] == [d.example.example_id for d in selection]
        json.dumps(found)
    assert len(model.predict(pd.DataFrame({"query": ["a cat"]}))["demonstrations"][0]) == 3
    with pytest.raises(MlflowException, match="Unknown task 'sport'"):
        model.predict(pd.DataFrame({"query": ["a cat"], "task": ["sport"]}))


def test_a_version_knows_how_it_was_evaluated(store, round_one, registered):
    """Served otherwise, it would not give what the gate let through."""
    assert Retriever.load(registered.folder).settings == round_one["search"]
    changed = {**round_one, "search": SearchSettings(num_shots=8)}
    assert versions.register(store, "settings", **round_one) == "1"
    assert versions.register(store, "settings", **changed) == "2"


def test_a_retriever_loads_by_alias(store, registered):
    """Users name the champion, not a version."""
    by_alias = Retriever.load(f"models:/{NAME}@champion", store=store).select("it is red", k=3)
    assert by_alias == Retriever.load(registered.folder).select("it is red", k=3)
    with pytest.raises(RegistryError, match=r"no alias 'chmapion'\. Aliases: champion -> 1"):
        Retriever.load(f"models:/{NAME}@chmapion", store=store)


def test_a_pool_that_is_embedded_already_serves_the_same(
    store, round_one, files, registered, tmp_path
):
    """Embedding a large pool twice costs a machine for hours."""
    index = registered.folder / "artifacts" / "bundle" / "index"
    changed = {**round_one, "pool": index, "outcomes": files.better}
    version = versions.register(store, "embedded", **changed)
    folder = versions.fetch(store, f"models:/embedded/{version}", tmp_path)
    expected = Retriever.load(registered.folder).select("it is red", k=5)
    assert Retriever.load(folder).select("it is red", k=5) == expected


def test_a_version_that_fails_to_upload_does_not_exist(store, round_one, files, tmp_path):
    """An alias could come to point at half a model."""
    broken = {**round_one, "outcomes": files.better, "entry_script": tmp_path / "gone.py"}
    with pytest.raises(ModelError, match="entry script"):
        versions.register(store, "half", **broken)
    assert versions.list_versions(store, "half") == []


def test_the_gate_report_is_kept_whole_and_in_short(store, registered):
    """Nobody could say later why a version was promoted."""
    assert story.read_gate_report(store, NAME, registered.version) is None
    decision = {"promoted": True, "headline": "Promoted: up.", "interval": {"low": 0.1}, "alpha": 1}
    story.store_gate_report(store, NAME, registered.version, decision, "# Promoted\n")
    assert story.read_gate_report(store, NAME, registered.version) == decision
    stored = store.client.get_model_version(NAME, registered.version)
    told = story.describe(store, NAME, registered.version)
    assert told == stored.description
    for part in (
        "Round 1",
        "Average 60.0",
        "scores and answers: `lm`",
        "from: `encoder`",
        "`report.html`",
    ):
        assert part in told.partition("# Promoted")[0]
    assert "tickets (test, 0123456789ab)" in told
    assert stored.tags["gate.headline"] == "Promoted: up."
    (row,) = versions.list_versions(store, NAME)
    assert row.row() | {"created": ""} == {
        "version": "1",
        "aliases": "champion",
        "round": "1",
        "average": "60.0",
        "gate": "promoted",
        "created": "",
    }


def test_a_promotion_by_hand_is_written_into_the_story(store, registered):
    """Months later it would look as if the gate had let the version through."""
    before = story.describe(store, NAME, registered.version)
    story.note_promotion_by_hand(store, NAME, registered.version, at=0.0)
    told = story.describe(store, NAME, registered.version)
    assert told == f"{before}\nMade champion by hand on 1970-01-01 00:00 UTC.\n"
    stored = store.client.get_model_version(NAME, registered.version)
    assert stored.tags["exemplar.promoted_by_hand"] == "1970-01-01 00:00 UTC"


def test_the_model_shows_the_figures_of_its_run(store, registered, run_id):
    """The models page could not be sorted by how good they are."""
    outputs = store.client.get_run(run_id).outputs.model_outputs  # in no order
    models = [store.client.get_logged_model(output.model_id) for output in outputs]
    link = {"name": NAME, "version": registered.version}
    (model,) = (m for m in models if json.loads(m.tags["mlflow.modelVersions"]) == [link])
    assert {item.key: item.value for item in model.metrics} == {"eval/average": 60.0}
    assert model.source_run_id == run_id
