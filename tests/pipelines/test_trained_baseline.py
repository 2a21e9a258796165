"""Claims about a retriever trained beside the rounds: one line, and it stands everywhere."""

from __future__ import annotations

import mlflow
import pytest
import yaml

from exemplar.data.io import read_json, read_records
from exemplar.records import LlmScores


@pytest.fixture(scope="module")
def run(write_params, run_cli, tmp_path_factory):
    """One round with BM25 and, by the line of params.yaml, EPR beside it."""
    root = tmp_path_factory.mktemp("epr")
    params = write_params(root / "params.yaml", {"promotion.baseline": "bm25"}, rounds=1)
    document = yaml.safe_load(params.read_text())
    document["baselines"] = {"bm25": {"method": "bm25"}}
    document["trained"] = {"epr": {"teacher": "llm_scores", "path": "rounds/r1/llm_scores.parquet"}}
    params.write_text(yaml.safe_dump(document))

    def run(*arguments):
        done = run_cli("--params", params, "--root", root, *arguments)
        assert done.code == 0, f"{arguments}: {done.err}"
        return done.out

    run.root = root
    run("download-data")
    run("bm25-candidates")
    run("llm-scoring", "--round", 1)
    run("kd-training", "--baseline", "epr")
    for name in ("bm25", "epr"):
        run("search", "--baseline", name)
        run("evaluation", "--baseline", name)
    return run


def test_epr_needs_nothing_but_the_lms_scores(run):
    """That it does without the reward model is what it is compared for."""
    assert not list(run.root.rglob("reward*"))
    summary = read_json(run.root / "baselines/epr/retriever/training.json")["summary"]
    scores = read_records(run.root / "rounds/r1/llm_scores.parquet", LlmScores)
    known = [summary[name] for name in ("num_queries", "num_held_out", "num_unused")]
    assert sum(known) == len(scores)
    assert "held_out/kl" not in summary


def test_it_stands_beside_the_rounds_in_table_report_registry_and_comparison(run):
    """A baseline that one of them leaves out is one that nobody compares with."""
    for step in (
        "reward-training",
        "reward-scoring",
        "kd-training",
        "search",
        "evaluation",
        "promotion",
    ):
        run(step, "--round", 1)
    run("report")
    assert "epr" in read_json(run.root / "metrics/rounds.json")
    assert "epr" in (run.root / "report.html").read_text()
    assert "epr" in run("summary")
    assert "From epr to r1" in run("compare", "epr", "r1")
    client = mlflow.MlflowClient(f"sqlite:///{run.root / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "tiny"]
    runs = {
        each.info.run_name: each.data for each in client.search_runs([experiment.experiment_id])
    }
    params = runs["baseline-epr"].params
    assert params["teacher"] == "llm_scores"
    assert params["kd_training.num_updates"] == "4"
    assert "kd_training.num_updates" not in runs["baseline-bm25"].params
    assert "eval/average" in runs["baseline-epr"].metrics


def test_what_has_nothing_to_train_or_learn_from_is_refused(run, run_cli):
    """A misspelt name must not train the wrong retriever for hours."""
    given = ("--params", run.root / "params.yaml", "--root", run.root, "kd-training")
    done = run_cli(*given, "--baseline", "bm25")
    assert (done.code, "has nothing to train" in done.err) == (2, True)
    assert run_cli(*given, "--round", 1, "--baseline", "epr").code == 2
    document = yaml.safe_load((run.root / "params.yaml").read_text())
    document["trained"] = {"llm_r": {"teacher": "rewards", "path": "data"}}
    (run.root / "other.yaml").write_text(yaml.safe_dump(document))
    done = run_cli(
        "--params", run.root / "other.yaml", "--root", run.root, *given[4:], "--baseline", "llm_r"
    )
    assert (done.code, "holds no rewards: expected r1/rewards.parquet" in done.err) == (2, True)
