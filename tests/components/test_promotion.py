"""Claims about promotion: what is logged, what is registered, and when the champion changes."""

import json
import shutil
from dataclasses import replace
from statistics import fmean

import pytest

from exemplar.config import load_params
from exemplar.data.io import fingerprint, made_from, read_records, write_records
from exemplar.errors import DataError, RegistryError
from exemplar.layout import Layout
from exemplar.records import Outcome
from exemplar.registry.aliases import aliases_of
from exemplar.registry.versions import list_versions
from exemplar.retrieval.pool_index import PoolIndex
from exemplar.steps import download_data, promotion
from exemplar.tracking.store import open_store

NAME = "tiny-retriever"


@pytest.fixture(scope="module")
def store(workspace):
    return open_store(workspace.root, "tiny", create=False)


@pytest.fixture
def copy(workspace, write_params, tmp_path):
    """A copy of the run with an experiment and a model of its own, in the copied database."""
    ignored = shutil.ignore_patterns("mlartifacts", "report.html")
    shutil.copytree(workspace.root, tmp_path / "copy", ignore=ignored)
    changes = {"promotion.experiment": "other", "promotion.registered_model": "other"}
    params = write_params(tmp_path / "copy/params.yaml", changes)
    return load_params(params), Layout(tmp_path / "copy")


def give(folder, score):
    """Let every answer of an evaluation have this score."""
    path = folder / "evaluation/outcomes.parquet"
    sealed = made_from(path)
    outcomes = [replace(outcome, score=score) for outcome in read_records(path, Outcome)]
    write_records(path, Outcome, outcomes, made_from=sealed)


def test_an_index_of_another_retriever_is_refused_before_anything_is_logged(copy):
    """Served beside this round's encoder it would find neighbours at random."""
    params, layout = copy
    shutil.rmtree(layout.round(1) / "index")
    shutil.copytree(layout.round(2) / "index", layout.round(1) / "index")
    with pytest.raises(DataError, match=r"index.pool\.parquet was made from another retriever"):
        promotion(params, layout=layout, number=1)


def test_promotion_json_tells_the_gates_decision_on_the_frozen_outcomes(workspace):
    """The verdict must follow from rows that anyone can read again."""
    folder = workspace.layout.round(1)
    decision = json.loads((folder / "promotion.json").read_text())

    def average(path):
        tasks = {}
        for outcome in read_records(path / "evaluation/outcomes.parquet", Outcome):
            tasks.setdefault(outcome.task, []).append(outcome.score)
        return fmean(fmean(scores) for scores in tasks.values())

    assert decision["against"] == "baseline bm25"
    assert decision["champion"] == pytest.approx(average(workspace.layout.baseline("bm25")))
    assert decision["challenger"] == pytest.approx(average(folder))
    difference = decision["challenger"] - decision["champion"]
    assert decision["interval"]["value"] == pytest.approx(difference)
    if decision["promoted"]:
        assert decision["interval"]["low"] > 0
    assert decision["headline"].startswith("Promoted" if decision["promoted"] else "Not promoted")


def test_every_round_is_a_version_with_its_data_and_gate_result(workspace, store):
    """A version whose origin is unknown can neither be audited nor rolled back to."""
    versions = {record.version: record for record in list_versions(store, NAME)}
    assert {v.round for v in versions.values()} == {1, 2}
    manifest = json.loads((workspace.layout.data / "manifest.json").read_text())
    for number in (1, 2):
        decision = json.loads((workspace.layout.round(number) / "promotion.json").read_text())
        record = versions[decision["version"]]
        assert record.round == number
        assert record.gate == ("promoted" if decision["promoted"] else "refused")
        assert record.run_id == decision["run_id"]
        for split in ("test", "pool"):
            assert record.fingerprints[split] == manifest["sha256"][split]


def test_rounds_and_baselines_are_runs_with_the_same_metric_names(workspace, store):
    """MLflow's page compares runs only by metrics of equal names."""
    runs = store.client.search_runs([store.experiment_id])
    assert {run.info.run_name for run in runs} == {
        *(f"round-{n}" for n in (1, 2)),
        *(f"baseline-{name}" for name in workspace.params.baselines),
    }
    assert {run.info.status for run in runs} == {"FINISHED"}
    names = ["eval/average", "eval/in_house", *(f"eval/{t}" for t in workspace.dataset.tasks)]
    for run in runs:
        kind, _, name = run.info.run_name.partition("-")
        folder = (
            workspace.layout.round(int(name))
            if kind == "round"
            else workspace.layout.baseline(name)
        )
        metrics = json.loads((folder / "evaluation/metrics.json").read_text())
        assert set(names) <= set(run.data.metrics)
        assert run.data.metrics["eval/average"] == pytest.approx(metrics["average"]["value"])
        assert {d.dataset.name for d in run.inputs.dataset_inputs} == {"pool", "train", "test"}
        assert run.data.tags["exemplar.data"] == workspace.dataset.fingerprint
        assert run.data.tags.get("exemplar.round", "") == (name if kind == "round" else "")
    colours = [run.data.tags["mlflow.runColor"] for run in runs]
    assert len(set(colours)) == len(runs), "two runs look the same in every chart"
    history = store.client.get_metric_history(
        next(run.info.run_id for run in runs if run.info.run_name == "round-1"),
        "kd_training_curve/loss",
    )
    written = json.loads((workspace.layout.round(1) / "retriever/training.json").read_text())
    losses = [(row["update"], row["loss"]) for row in written["history"] if "loss" in row]
    assert [(point.step, point.value) for point in history] == losses


def test_promoting_again_adds_nothing(workspace, store):
    """A step that is repeated after a crash must not fill the registry with copies."""
    runs = {run.info.run_id for run in store.client.search_runs([store.experiment_id])}
    versions = list_versions(store, NAME)
    before = json.loads((workspace.layout.round(2) / "promotion.json").read_text())
    promotion(workspace.params, layout=workspace.layout, number=2)
    assert {run.info.run_id for run in store.client.search_runs([store.experiment_id])} == runs
    assert list_versions(store, NAME) == versions
    assert json.loads((workspace.layout.round(2) / "promotion.json").read_text()) == before


def test_better_rounds_become_champion_and_rollback_returns(copy, run_cli):
    """The whole life of a champion: first, not compared with itself, second, served, and back."""
    params, layout = copy
    give(layout.baseline("bm25"), 0.0)
    give(layout.round(1), 50.0)
    give(layout.round(2), 100.0)
    first = promotion(params, layout=layout, number=1)
    assert (first["promoted"], first["against"]) == (True, "baseline bm25")
    store = open_store(layout.root, "other", create=False)
    assert aliases_of(store, "other") == {"champion": first["version"]}
    assert promotion(params, layout=layout, number=1) == first
    second = promotion(params, layout=layout, number=2)
    assert second["promoted"]
    assert second["against"] == f"champion, version {first['version']}"
    expected = {"champion": second["version"], "previous": first["version"]}
    assert aliases_of(store, "other") == expected

    options = ("--params", layout.root / "params.yaml", "--root", layout.root)
    query = "The book of knots, says Ida: save it for the new reader."
    chosen = run_cli(
        *options,
        "select",
        query,
        "--task",
        "library_slips",
        "-k",
        2,
        "--model",
        "models:/other@champion",
    )
    assert chosen.code == 0, chosen.err
    assert chosen.out.count("[library_slips]") == 2
    rolled = run_cli(*options, "rollback")
    assert rolled.code == 0, rolled.err
    assert f"version {first['version']}" in rolled.out
    expected = {"champion": first["version"], "previous": second["version"]}
    assert aliases_of(store, "other") == expected


def test_a_champion_of_another_test_set_is_not_compared(copy):
    """Averages over different questions differ for no reason that concerns the retriever."""
    params, layout = copy
    give(layout.baseline("bm25"), 0.0)
    give(layout.round(1), 50.0)
    assert promotion(params, layout=layout, number=1)["promoted"]
    data = params.active.download_data.model_copy(update={"max_test": 4})
    download_data(params.active.model_copy(update={"download_data": data}), data=layout.data)
    with pytest.raises(DataError, match="was made from another data"):
        promotion(params, layout=layout, number=2)  # its evaluation is of the old test set
    from exemplar.data.dataset import read_dataset

    sealed = {"data": read_dataset(layout.data).fingerprint}
    for folder in (layout.round(2), *(layout.baseline(name) for name in params.baselines)):
        path = folder / "evaluation/outcomes.parquet"
        outcomes = [replace(outcome, score=100.0) for outcome in read_records(path, Outcome)]
        write_records(path, Outcome, outcomes, made_from=sealed)
    index = layout.round(2) / "index"
    PoolIndex.load(index).save(
        index, made_from={**sealed, "retriever": fingerprint(layout.round(2) / "retriever")}
    )
    refused = promotion(params, layout=layout, number=2)
    assert not refused["promoted"]
    assert "another test" in refused["headline"]


@pytest.fixture
def run_so_far(workspace, tmp_path):
    """The run's folder as it is before round 2."""
    folder = tmp_path / "run"
    (folder / "rounds").mkdir(parents=True)
    for name in ("baselines", "costs", "rounds/r1"):
        (folder / name).symlink_to(workspace.root / name)
    return folder


def made_in(folder):
    """The artifacts of a round."""
    return {
        "rewards": folder / "rewards.parquet",
        "reward_model": folder / "reward_model",
        "retriever": folder / "retriever",
        "demonstrations": folder / "demonstrations.parquet",
        "index": folder / "index",
        "outcomes": folder / "evaluation",
    }


def test_the_component_decides_the_same_and_hands_the_run_on(
    workspace, component, run_so_far, store
):
    """The next round and the report see of a round only what promotion keeps."""
    data, folder = workspace.layout.data, workspace.layout.round(2)
    versions = list_versions(store, NAME)
    made = component("promotion", number=2, data=data, earlier=run_so_far, **made_in(folder))
    assert list_versions(store, NAME) == versions  # found again, not registered twice
    before = json.loads((folder / "promotion.json").read_text())
    assert made["Output"] is before["promoted"]
    assert json.loads((made["run"] / "rounds/r2/promotion.json").read_text()) == before
    assert before["headline"] in made["decision"].read_text()
    for name in ("rewards.parquet", "demonstrations.parquet", "retriever/training.json"):
        for number in (1, 2):
            kept = made["run"] / f"rounds/r{number}" / name
            assert kept.read_bytes() == (workspace.layout.round(number) / name).read_bytes()
    assert not list((made["run"] / "rounds/r2").rglob("*.safetensors"))


def test_without_a_server_the_component_does_nothing(workspace, component, run_so_far, monkeypatch):
    """A model registered on a pod's own disk is lost with the pod, and nobody is told."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    made = made_in(workspace.layout.round(2))
    with pytest.raises(RegistryError, match="MLFLOW_TRACKING_URI is not set"):
        component("promotion", number=2, data=workspace.layout.data, earlier=run_so_far, **made)


def test_people_promote_by_hand_what_the_gate_let_through_and_else_only_on_purpose(copy, run_cli):
    """A refused retriever would reach users by a slip of the hand, unseen by all later."""
    params, layout = copy
    give(layout.baseline("bm25"), 0.0)
    give(layout.round(1), 100.0)
    give(layout.round(2), 50.0)
    first = promotion(params, layout=layout, number=1)["version"]
    second = promotion(params, layout=layout, number=2)["version"]
    options = ("--params", layout.root / "params.yaml", "--root", layout.root)
    refused = run_cli(*options, "promote", second)
    assert refused.code == 2
    assert "has not passed the gate. Not promoted. The mean over" in refused.err
    assert f"exemplar promote {second} --anyway" in refused.err
    store = open_store(layout.root, "other", create=False)
    assert aliases_of(store, "other") == {"champion": first, "challenger": second}
    assert run_cli(*options, "promote", second, "--anyway").code == 0
    assert aliases_of(store, "other") == {"champion": second, "previous": first}
    assert run_cli(*options, "promote", first).code == 0
    assert aliases_of(store, "other") == {"champion": first, "previous": second}
    shown = run_cli(*options, "registry", second)
    assert shown.code == 0
    assert "# Not promoted" in shown.out
    assert "Made champion by hand on 20" in shown.out
    unknown = run_cli(*options, "promote", "7")
    assert unknown.code == 2
    assert "no version '7'" in unknown.err
