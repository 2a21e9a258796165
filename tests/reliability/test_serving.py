"""Claims about the service as a process of its own, on the workspace's registered versions."""

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from types import SimpleNamespace

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from exemplar.data.dataset import read_dataset
from exemplar.registry import aliases
from exemplar.tracking.store import open_store


@pytest.fixture(scope="module")
def registered(workspace, tmp_path_factory):
    """A copy of the workspace's registry, whose aliases may move; the files stay where they are."""
    root = tmp_path_factory.mktemp("registry")
    shutil.copy2(workspace.root / "mlflow.db", root)
    store = open_store(root, create=False)
    name = workspace.params.active.promotion.registered_model
    aliases.promote(store, name, "1")
    texts = [item.query for item in read_dataset(workspace.root / "data").test][:20]
    return SimpleNamespace(root=root, store=store, name=name, texts=texts)


@pytest.fixture(scope="module")
def server(registered):
    """`exemplar serve` on the champion, as a process."""
    command = [sys.executable, "-m", "exemplar", "--root", registered.root, "serve", "--port", "0"]
    command += ["--model", f"models:/{registered.name}@champion", "--poll-seconds", "0.2"]
    environment = {key: v for key, v in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    process = subprocess.Popen(
        [str(part) for part in command], stderr=subprocess.PIPE, text=True, env=environment
    )
    log = []
    reader = threading.Thread(target=lambda: log.extend(process.stderr), daemon=True)
    reader.start()
    wait(lambda: log or process.poll() is not None)
    assert process.poll() is None, log
    port = json.loads(log[0])["port"]
    wait(lambda: get(port, "/ready")[0] == 200)
    yield SimpleNamespace(process=process, port=port, log=log, reader=reader)
    process.kill()
    process.wait()


def wait(condition, seconds=60):
    stop = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < stop, f"not within {seconds} seconds"
        time.sleep(0.05)


def get(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def select(connection, body):
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/select", json.dumps(body), headers)
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def test_mlflow_s_server_gives_the_same_answers(registered, server):
    """A team that moves from one to the other would get other prompts."""
    from fastapi.testclient import TestClient
    from mlflow.pyfunc import load_model
    from mlflow.pyfunc.scoring_server import init

    from exemplar.registry import versions

    folder = versions.fetch(registered.store, f"models:/{registered.name}/1", registered.root)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's own, about type hints and versions
        scoring = TestClient(init(load_model(str(folder))))
    task = get(server.port, "/v1/model")[1]["tasks"].popitem()[0]
    rows = [
        {"query": registered.texts[0], "k": 2},
        {"query": registered.texts[1], "task": task, "format": "both"},
        {"query": registered.texts[2], "filters": {"tasks": [task]}, "format": "chat", "k": 1},
        {"query": registered.texts[3], "filters": {"min_similarity": 0.5, "exclude_ids": ["a"]}},
    ]
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    status, answers = select(connection, rows)
    assert status == 200, answers
    predicted = scoring.post("/invocations", json={"dataframe_records": rows})
    assert predicted.status_code == 200, predicted.text
    for mine, theirs in zip(answers, predicted.json()["predictions"], strict=True):
        given = {key: value for key, value in theirs.items() if value is not None}
        assert {**mine, "version": None} == {**given, "version": None}
    refused = scoring.post("/invocations", json={"dataframe_records": [{"query": "a", "k": 0}]})
    assert refused.status_code == 400
    assert "k: Input should be greater" in refused.json()["message"]


def test_a_new_champion_takes_over_without_a_failed_request(registered, server):
    """Every promotion would cost users errors, or a restart at night."""
    assert get(server.port, "/v1/model")[1]["version"] == "1"
    stop, seen = threading.Event(), []

    def client(number):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        while not stop.is_set():
            text = registered.texts[(number + len(seen)) % len(registered.texts)]
            seen.append(select(connection, [{"query": text, "k": 2}] * 2))

    clients = [threading.Thread(target=client, args=(number,)) for number in range(4)]
    for thread in clients:
        thread.start()
    time.sleep(0.5)
    aliases.promote(registered.store, registered.name, "2")
    wait(lambda: get(server.port, "/v1/model")[1]["version"] == "2")
    aliases.rollback(registered.store, registered.name)
    wait(lambda: get(server.port, "/v1/model")[1]["version"] == "1")
    time.sleep(0.2)
    stop.set()
    for thread in clients:
        thread.join()
    assert {status for status, _ in seen} == {200}
    versions = [{answer["version"] for answer in answers} for _, answers in seen]
    assert all(len(of_request) == 1 for of_request in versions), "an answer of two versions"
    assert {version for of_request in versions for version in of_request} == {"1", "2"}
    loaded = [json.loads(line) for line in server.log if "model loaded" in line]
    assert [(line["before"], line["version"]) for line in loaded] == [
        (None, "1"),
        ("1", "2"),
        ("2", "1"),
    ]


def test_told_to_stop_it_finishes_what_is_under_way(registered, server):
    """A rolling update would cut answers off."""
    results = []

    def client():
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        results.append(select(connection, [{"query": text} for text in registered.texts]))

    clients = [threading.Thread(target=client) for _ in range(8)]
    before = len(server.log)
    for thread in clients:
        thread.start()
    wait(lambda: any('"request"' in line for line in server.log[before:]))
    server.process.send_signal(signal.SIGTERM)
    for thread in clients:
        thread.join()
    server.process.wait(30)
    server.reader.join()
    assert [status for status, _ in results] == [200] * 8
    assert "Traceback" not in "".join(server.log)
    assert json.loads(server.log[-1])["event"] == "stopped"


def test_what_cannot_be_served_is_one_message(registered, run_cli):
    """A container that restarts for ever should say why in its first line."""
    root = ("--root", registered.root, "serve")
    done = run_cli(*root, "--model", "models:/nobody@champion")
    assert done.code == 2
    assert "no model 'nobody' is registered" in done.err
    done = run_cli(*root, "--model", registered.root)
    assert (done.code, "is neither a bundle" in done.err) == (2, True), done.err
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_cli(*root, "--port", port, "--model", registered.root)
        assert done.code == 2
        assert f"Cannot listen on 127.0.0.1:{port}" in done.err
