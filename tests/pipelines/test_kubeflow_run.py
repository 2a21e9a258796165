"""Claims about runs: what is submitted runs as it came, and gives what the bare steps give."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

FORKS = Path(__file__).parent / "forks.py"
RUN = """
import json, sys
from pathlib import Path
sys.executable = sys.argv[1]
from exemplar.cli.pipeline import show
from exemplar.errors import PipelineError
from exemplar.kubeflow.local import run_here
from exemplar.kubeflow.package import read_package
package, arguments, root = Path(sys.argv[2]), json.loads(sys.argv[3]), Path(sys.argv[4])
try:
    say = lambda line, out=sys.stdout: print(line, file=out)
    done = run_here(read_package(package), arguments, outputs=root / "runs", root=root, say=say)
    show(done, arguments, root)
    print("RUN", done.run, done.page)
except PipelineError as error:
    sys.exit(str(error))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """An interpreter for KFP's tasks that has everything imported (forks.py)."""
    folder = tmp_path_factory.mktemp("forks")
    address, interpreter = folder / "socket", folder / "python"
    interpreter.write_text(
        f'#!/bin/sh\nexec {sys.executable} -S -E {FORKS} python {address} "$@"\n'
    )
    interpreter.chmod(0o755)
    server = subprocess.Popen([sys.executable, FORKS, "serve", address])
    while not address.exists():
        assert server.poll() is None
        time.sleep(0.1)
    yield interpreter
    server.send_signal(signal.SIGTERM)
    server.wait()


@pytest.fixture(scope="module")
def store(workspace):
    """Return a function that puts an MLflow database into a folder; to make one takes seconds.

    What the workspace has in it lies in other experiments than these tests look at.
    """
    return lambda root: shutil.copy(workspace.root / "mlflow.db", root / "mlflow.db")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, python, kfp_server, check_whole, store):
    """A server that executes what it receives, by KFP's local runner in a process of its own."""
    root = tmp_path_factory.mktemp("cluster")
    store(root)
    found = {}

    def execute(text: bytes, arguments: dict) -> list[str]:
        (root / "received.yaml").write_bytes(text)
        command = [sys.executable, "-c", RUN, python, root / "received.yaml"]
        done = subprocess.run(
            [*map(str, command), json.dumps(arguments), str(root)],
            env={**os.environ, "HOME": str(root), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])
        *lines, last = done.stdout.splitlines()
        found["run"], found["page"] = map(Path, last.split()[1:])
        found["shown"] = done.stdout
        return [line.split()[-1] for line in lines if " s  " in line]

    server = kfp_server(check_whole, execute, token="let-me-in")
    server.found, server.root = found, root
    yield server
    server.shutdown()


@pytest.fixture(scope="module")
def package(tmp_path_factory, project, write_params):
    """The tiny run as a pipeline: two shards, BM25 beside, a second round if the first is good."""
    folder = tmp_path_factory.mktemp("package")
    params = write_params(folder / "params.yaml")
    document = yaml.safe_load(params.read_text())
    document["baselines"] = {"bm25": document["baselines"]["bm25"]}
    own = {"experiment": "pipelines", "registered_model": "pipelines-retriever"}
    document["profiles"]["tiny"]["promotion"] |= own
    params.write_text(yaml.safe_dump(document, sort_keys=False))
    command = ["pipeline", "compile", "--shards", "2", "--early-stop", "--out"]
    subprocess.run(
        [sys.executable, "-m", "exemplar", "--params", params, *command, folder / "tiny.yaml"],
        cwd=project,
        check=True,
    )
    return folder / "tiny.yaml"


def submit(run_cli, monkeypatch, package, server, *options, token="let-me-in"):
    monkeypatch.setenv("EXEMPLAR_KFP_TOKEN", token)
    return run_cli("pipeline", "submit", package, "--endpoint", server.address, *options)


@pytest.mark.slow
def test_a_submitted_pipeline_runs_as_received_and_gives_what_the_bare_steps_give(
    run_cli, monkeypatch, package, cluster, workspace
):
    """Same parameters, same seeds: by whatever runner, every file must be the same."""
    options = ("--experiment", "tests", "--service-account", "pipeline-runner", "--name", "first")
    done = submit(run_cli, monkeypatch, package, cluster, *options, "--watch")
    assert done.code == 0, done.err
    assert "succeeded  the run" in done.out
    assert "succeeded  report" in done.out
    (run,) = cluster.runs.values()
    assert run["service_account"] == "pipeline-runner"
    assert run["display_name"] == "first"
    assert cluster.experiments[run["experiment_id"]]["display_name"] == "tests"
    assert (cluster.root / "received.yaml").read_bytes() == package.read_bytes()

    made = cluster.found["run"].parent.parent
    first = workspace.layout.round(1)
    for task, output, expected in [
        ("download-data", "data", workspace.layout.data),
        ("bm25-candidates", "candidates", first / "candidates.parquet"),
        ("llm-scoring-2", "llm_scores", first / "llm_scores.parquet"),
        ("reward-training", "reward_model", first / "reward_model"),
        ("reward-scoring-2", "rewards", first / "rewards.parquet"),
        ("kd-training", "retriever", first / "retriever"),
        ("search-2", "next_candidates", workspace.layout.round(2) / "candidates.parquet"),
        ("search-2", "index", first / "index"),
        ("evaluation-3", "outcomes", first / "evaluation"),
    ]:
        assert contents(made / task / output) == contents(expected), task
    baseline = cluster.found["run"] / "baselines/bm25"
    assert contents(baseline) == contents(workspace.layout.baseline("bm25"))
    decision = json.loads((cluster.found["run"] / "rounds/r1/promotion.json").read_text())
    assert not decision["promoted"]  # the models are random
    assert not list(made.rglob("llm-scoring-3")), "a round after a refused one must not start"
    assert f"r1 {decision['headline'][:40]}" in cluster.found["shown"]
    page = cluster.found["page"].read_text()
    assert all(name in page for name in ("BM25", "Round 1", decision["reasons"][0].split(",")[0]))
    check_mlflow(cluster.root)
    costs = {str(path.relative_to(made / "promotion/run/costs")) for path in all_costs(made)}
    assert {"download_data.json", "r1/kd_training.json", "bm25/evaluation.json"} <= costs
    assert "r1-shard-2-of-2/llm_scoring.json" in costs
    assert not list((cluster.root / ".cache/exemplar/work").iterdir())  # nothing is left over


def contents(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return {"" if p == path else str(p.relative_to(path)): p.read_bytes() for p in files}


def all_costs(made: Path) -> list[Path]:
    return list((made / "promotion/run/costs").rglob("*.json"))


def check_mlflow(root: Path) -> None:
    """The pipeline's own run is closed with its state; rounds and baseline stand beside it."""
    from exemplar.tracking.store import open_store

    store = open_store(f"sqlite:///{root / 'mlflow.db'}", "pipelines", create=False)
    runs = {run.info.run_name: run for run in store.client.search_runs([store.experiment_id])}
    assert set(runs) == {"exemplar-iteration", "round-1", "baseline-bm25"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert runs["exemplar-iteration"].data.tags["exemplar.pipeline_state"] == "SUCCEEDED"


def test_a_step_that_fails_ends_the_run_and_closes_its_mlflow_run(
    run_cli, monkeypatch, package, cluster
):
    """A run that stays open in MLflow looks as if it still went on, weeks later."""
    from exemplar.tracking.store import open_store

    setting = ("--set", "reward_training.min_accuracy=0.99", "--set", "promotion.experiment=bad")
    done = submit(run_cli, monkeypatch, package, cluster, *setting, "--watch")
    assert done.code == 2
    assert "ended as FAILED" in done.err
    assert "reward-training" in done.err
    uri = f"sqlite:///{cluster.root / 'mlflow.db'}"
    store = open_store(uri, "bad", create=False)
    (run,) = store.client.search_runs([store.experiment_id])
    assert run.info.status == "FAILED"
    assert run.data.tags["exemplar.pipeline_state"] == "FAILED"
