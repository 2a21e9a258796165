"""Claims about runs in MLflow, on a real SQLite store."""

import dataclasses
from pathlib import Path

import pytest

from exemplar.data.io import write_text
from exemplar.errors import DataError, RegistryError
from exemplar.tracking import runs
from exemplar.tracking.store import open_store, store_uri


def a_run(name, **changes):
    run = {
        "name": name,
        "kind": "round",
        "round": 2,
        "params": {"round": 2, "lr": 3e-5, "encoder": "tiny", "tasks": ["a", "b"]},
        "metrics": {"eval/average": 61.5, "eval/a": 50.0},
        "curves": {"kd_training_curve/loss": [(0, 2.0), (10, 1.0), (20, 0.5)]},
    }
    return run | changes


def runs_named(store, name):
    return store.client.search_runs([store.experiment_id], f"attributes.run_name = '{name}'")


def test_logging_the_same_twice_gives_one_run(store):
    """A repeated `dvc repro` would fill the comparison page with copies."""
    first = runs.log_run(store, **a_run("twice"), tags={"commit": "1"})
    second = runs.log_run(store, **a_run("twice"), tags={"commit": "2"})
    assert first == second
    assert len(runs_named(store, "twice")) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"metrics": {"eval/average": 61.6, "eval/a": 50.0}},
        {"params": {"round": 2}},
        {"curves": {}},
        {"round": 3},
        {"datasets": [runs.Dataset("pool", Path("pool.parquet"), "ab12", "training")]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_changed_result_gives_a_new_run(store, change):
    """Old figures would stand for new ones."""
    name = f"changed-{next(iter(change))}"
    first = runs.log_run(store, **a_run(name))
    assert runs.log_run(store, **a_run(name, **change)) != first


def test_changed_artifacts_give_a_new_run(store, tmp_path):
    """The outcomes beside a run would not be the ones that its figures come from."""
    path = tmp_path / "examples.md"
    write_text(path, "one")
    first = runs.log_run(store, **a_run("artifacts"), artifacts=[path])
    write_text(path, "two")
    assert runs.log_run(store, **a_run("artifacts"), artifacts=[path]) != first


def test_a_run_holds_what_was_logged(store, tmp_path):
    """Everything that compares rounds reads it back from here."""
    path = tmp_path / "examples.md"
    write_text(path, "one")
    digest = "f" * 64
    identity = runs.log_run(
        store,
        **a_run("held", metrics={"eval/recall@10": 4}),
        datasets=[("pool", Path("data/pool.parquet"), digest, "training")],
        tags={"commit": "abc"},
        artifacts=[path],
    )
    run = store.client.get_run(identity)
    assert run.info.status == "FINISHED"
    assert run.data.params == {
        "round": "2",
        "lr": "3e-05",
        "encoder": "tiny",
        "tasks": '["a", "b"]',
    }
    assert run.data.metrics == {"eval/recall_10": 4.0, "kd_training_curve/loss": 0.5}
    curve = store.client.get_metric_history(identity, "kd_training_curve/loss")
    assert [(point.step, point.value) for point in curve] == [(0, 2.0), (10, 1.0), (20, 0.5)]
    assert store.client.get_metric_history(identity, "eval/recall_10")[0].step == 0
    assert run.data.tags["commit"] == "abc"
    assert run.data.tags["exemplar.round"] == "2"
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("pool", digest[:36])
    assert [tag.value for tag in used.tags] == ["training"]
    assert [item.path for item in store.client.list_artifacts(identity)] == ["examples.md"]
    runs.add_artifacts(store, identity, [tmp_path / "examples.md"])


def test_more_figures_than_one_request_takes_are_all_logged(store):
    """MLflow refuses more than 1,000 metrics or 100 params at once."""
    identity = runs.log_run(
        store,
        **a_run(
            "many",
            params={f"p{i}": i for i in range(250)},
            curves={"c": [(i, float(i)) for i in range(2500)]},
        ),
    )
    run = store.client.get_run(identity)
    assert len(run.data.params) == 250
    assert run.data.metrics["c"] == 2499.0


@pytest.mark.parametrize("writes", [1, 2, 3])
def test_a_run_that_was_cut_short_does_not_count_as_logged(store, dying, writes):
    """Half the figures of a round would be taken for all of them."""
    run = a_run(f"cut-{writes}")
    broken = dataclasses.replace(store, client=dying(store.client, writes))
    with pytest.raises(KeyboardInterrupt):
        runs.log_run(broken, **run)
    identity = runs.log_run(store, **run)
    states = {item.info.run_id: item.info.status for item in runs_named(store, run["name"])}
    assert states.pop(identity) == "FINISHED"
    assert set(states.values()) <= {"FAILED", "KILLED"}
    assert runs.log_run(store, **run) == identity


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_figure_that_is_not_finite_is_refused_and_leaves_no_run(store, value):
    """A diverged training would look like a gap in a chart."""
    with pytest.raises(DataError, match=r"'loss' is .* at step 3"):
        runs.log_run(store, **a_run("infinite", curves={"loss": [(3, value)]}))
    assert not runs_named(store, "infinite")


def test_the_environment_names_the_store_before_the_project_does(tmp_path):
    """A run on a cluster would log into a file in its own pod."""
    given = {"MLFLOW_TRACKING_URI": "http://mlflow:5000"}
    assert store_uri(tmp_path, given) == "http://mlflow:5000"
    assert store_uri(tmp_path, {}) == f"sqlite:///{tmp_path.resolve()}/mlflow.db"


def test_looking_makes_nothing(tmp_path, store):
    """`exemplar select` in the wrong folder would leave a database there and find it empty."""
    with pytest.raises(RegistryError, match="no MLflow database at"):
        open_store(f"sqlite:///{tmp_path / 'mlflow.db'}", "exemplar", create=False)
    with pytest.raises(RegistryError, match="no experiment 'other'"):
        open_store(store.uri, "other", create=False)
    assert not list(tmp_path.iterdir())


def test_opening_again_finds_the_same_experiment(store):
    """Each step would start an experiment of its own."""
    assert open_store(store.uri, "exemplar").experiment_id == store.experiment_id
    other = open_store(store.uri, "another")
    assert other.experiment_id != store.experiment_id


def test_a_deleted_experiment_is_an_error_that_says_how_to_restore_it(store):
    """MLflow would refuse every run with a message about lifecycle stages."""
    deleted = open_store(store.uri, "deleted")
    store.client.delete_experiment(deleted.experiment_id)
    with pytest.raises(RegistryError, match="mlflow experiments restore"):
        open_store(store.uri, "deleted")


@pytest.mark.parametrize("uri", ["nonsense://somewhere", "sqlite:////dev/null/mlflow.db"])
def test_a_store_that_cannot_be_opened_is_one_clear_error(uri):
    """A traceback through the database layers says nothing about the address being wrong."""
    with pytest.raises(RegistryError, match="opening the MLflow store"):
        open_store(uri, "exemplar")
