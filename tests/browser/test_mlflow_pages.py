"""Claims about MLflow's own pages, in a real browser on a real server."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from urllib.parse import quote

import pytest

from exemplar.registry.versions import list_versions
from exemplar.tracking.store import open_store

CHARTS = "document.querySelectorAll('.js-plotly-plot .main-svg').length"


@pytest.fixture(scope="module")
def server(workspace):
    """The address of an MLflow server on the run's store."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    root = workspace.root.resolve()
    words = ["--backend-store-uri", f"sqlite:///{root / 'mlflow.db'}", "--workers", "1"]
    words += ["--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *words],
        env=environment,
        cwd=root,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + 120
        while not answers(f"{address}/health"):
            assert process.poll() is None, "the MLflow server has stopped"
            assert time.monotonic() < end, "the MLflow server does not answer"
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def answers(url):
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
        return answer.status == 200
    return False


@pytest.fixture(scope="module")
def store(workspace):
    return open_store(workspace.root, "tiny", create=False)


@pytest.mark.slow
def test_the_compare_page_draws_rounds_and_baselines_side_by_side(browser, server, store):
    """With other names for a baseline's metrics the page would be empty where it matters."""
    runs = store.client.search_runs([store.experiment_id])
    names = {run.info.run_name for run in runs}
    assert {"round-1", "round-2", "baseline-bm25", "baseline-zero_shot"} <= names
    ids = quote(json.dumps([run.info.run_id for run in runs]))
    experiment = quote(json.dumps([store.experiment_id]))
    browser.look(width=1500, height=1400)
    browser.open(f"{server}/#/compare-runs?runs={ids}&experiments={experiment}")
    browser.wait(f"{CHARTS} >= 1 && document.body.innerText.includes('eval/average')")
    text = browser.run("document.body.innerText")
    for name in names:
        assert name in text
    for metric in ("eval/average", "eval/library_slips", "eval_low/average"):
        assert metric in text
    figure = next(run for run in runs if run.info.run_name == "round-2").data.metrics
    assert f"{figure['eval/average']:.3f}".rstrip("0") in text


@pytest.mark.slow
def test_the_charts_of_the_experiment_draw_a_bar_for_every_run(browser, server, store):
    """Rounds and baselines logged at different steps become lone dots of a line chart."""
    number = len(store.client.search_runs([store.experiment_id]))
    browser.look(width=1500, height=1400)
    browser.open(f"{server}/#/experiments/{store.experiment_id}/runs?compareRunsMode=CHART")
    first = "document.querySelector('.js-plotly-plot')"
    browser.wait(f"{first} && {first}.querySelectorAll('.barlayer .point').length === {number}")
    text = browser.wait(
        "document.body.innerText.includes('eval/average') && document.body.innerText"
    )
    for name in ("round-1", "baseline-bm25", "eval/in_house"):
        assert name in text


@pytest.mark.slow
def test_a_versions_page_tells_its_story(browser, server, store):
    """Whoever decides on a rollback sees a number and a date, and has to ask around."""
    newest = list_versions(store, "tiny-retriever")[0]
    browser.look(width=1500, height=1400)
    browser.open(f"{server}/#/models/tiny-retriever/versions/{newest.version}")
    browser.wait("document.body.innerText.includes('Compared by the gate with')")
    text = browser.run("document.body.innerText")
    for part in (f"Round {newest.round}", "Average", "Wilcoxon", "museum_marks", "exemplar.gate"):
        assert part in text
    assert newest.gate in text
    assert f"round-{newest.round}" in text  # the run that made it
