"""Claims about submission: an unmodified kfp.Client is understood, and trouble is told in words."""

from __future__ import annotations

import socket
import threading
import time

import pytest
import yaml

from exemplar.errors import PipelineError
from exemplar.kubeflow import client
from exemplar.kubeflow.endpoint import Endpoint

TOKEN = "let-me-in"


@pytest.fixture(scope="module")
def package(tmp_path_factory, project):
    from exemplar.config import load_params
    from exemplar.kubeflow import arguments, cluster, compiling, placement, plan

    params = load_params(project / "params.yaml")
    placement = placement.Placement(
        cluster.load_cluster(project / "infra/kubernetes/profile.yaml"),
        image="exemplar-python",
        hardware="cpu",
    )
    out = tmp_path_factory.mktemp("submit") / "round.yaml"
    defaults = arguments.of_profile(params.profiles["demo"], params.baselines)
    compiling.compile_pipeline("round", plan.Plan(placement), defaults, out, project=project)
    return out


@pytest.fixture
def server(kfp_server, check_whole):
    made = kfp_server(check_whole, lambda text, arguments: ["download-data", "report"])
    made.token = TOKEN
    yield made
    made.shutdown()


@pytest.fixture
def submit(run_cli, monkeypatch, package, server):
    """Return a function that submits with the right token, unless told otherwise."""

    def call(*options, token=TOKEN, endpoint=None):
        monkeypatch.setenv("EXEMPLAR_KFP_TOKEN", token)
        where = endpoint or server.address
        return run_cli("pipeline", "submit", package, "--endpoint", where, *options)

    return call


def test_settings_reach_the_run_and_a_file_is_uploaded_once(submit, server, package):
    """What the run is started with is what its results mean; versions must not pile up."""
    assert submit("--set", "kd_training.num_updates=7", "--set", "seed=5").code == 0
    assert submit().code == 0
    first, second = server.runs.values()
    given, plain = (run["runtime_config"]["parameters"] for run in (first, second))
    assert yaml.safe_load(given["kd_training"])["num_updates"] == 7
    assert given["seed"] == 5
    changed = {name for name in given if given[name] != plain[name]}
    assert changed == {"kd_training", "seed"}
    assert len(server.pipelines) == len(server.experiments) == 1
    reference = first["pipeline_version_reference"]
    assert second["pipeline_version_reference"] == reference
    assert server.files[reference["pipeline_version_id"]] == package.read_bytes()
    assert sum(text == package.read_bytes() for text in server.files.values()) == 2  # and the first


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--set", "kd_training.num_update=7"), "no 'num_update' here; known: init"),
        (("--set", "lm.batch_tokens=many"), "lm.batch_tokens: Input should be a valid integer"),
        (("--set", "llm_scoring.num_candidates=900"), "more than the candidates proposed"),
        (("--profile", "huge"), "known: demo, cpu, paper"),
    ],
)
def test_wrong_parameters_are_refused_before_anything_is_sent(
    submit, server, monkeypatch, project, options, words
):
    """On the cluster they would fail in the first pod that reads them, hours later."""
    monkeypatch.chdir(project)
    done = submit(*options)
    assert done.code == 2
    assert words in done.err
    assert not server.experiments


@pytest.mark.parametrize(
    ("token", "words"), [("wrong", "was given the token"), ("", "was given no credentials")]
)
def test_refused_credentials_are_told_at_once(submit, token, words):
    """kfp.Client alone tries five times, for 25 seconds, and speaks of a health check."""
    start = time.monotonic()
    done = submit(token=token)
    assert time.monotonic() - start < 10
    assert done.code == 2
    assert words in done.err
    assert "EXEMPLAR_KFP_TOKEN" in done.err
    assert "wrong" not in done.err  # a token has no place on a terminal


def test_a_server_that_is_down_is_named_with_the_reason(submit):
    """The commonest case by far: the port is not forwarded."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = submit(endpoint=f"http://127.0.0.1:{port}")
    assert done.code == 2
    assert f"127.0.0.1:{port} cannot be reached" in done.err
    assert "refused" in done.err


def test_a_server_that_does_not_answer_in_time_is_left(submit, server):
    """Without a limit the command, and the CI job around it, would hang."""
    server.delay_s = 3
    start = time.monotonic()
    done = submit("--timeout", "1")
    assert time.monotonic() - start < 10
    assert done.code == 2
    assert "has not answered within 1 s" in done.err


def test_another_server_is_told_from_a_kfp_endpoint(submit, server):
    """A web page answers, too; what kfp.Client makes of it is a traceback."""
    done = submit(endpoint=f"{server.address}/elsewhere")
    assert done.code == 2
    assert "is no KFP endpoint" in done.err
    assert "expected an address with http://" in submit(endpoint="cluster:8080").err


def test_what_the_server_refuses_is_in_its_own_words(submit, server):
    """It knows best what is wrong: a quota, a name, a missing right."""
    server.check = refuse
    done = submit()
    assert done.code == 2
    assert "refused it (400)" in done.err
    assert "this file is not welcome" in done.err


def refuse(*_):
    raise ValueError("this file is not welcome")


def test_watching_survives_a_restart_of_the_server(submit, server, run_cli):
    """Runs take days; a restart of the API server in between must not end the watch."""
    run_id = submit().out.split()[1]
    server.broken = "/runs"
    endpoint = Endpoint(server.address, token=TOKEN)
    watching = client.watch(endpoint, run_id, every_s=0.05, lost_s=60)
    timer = threading.Timer(0.5, setattr, (server, "broken", ""))
    timer.start()
    changes = [(change.task, change.state) for change in watching]
    assert changes[-1] == ("", "SUCCEEDED")
    assert ("report", "SUCCEEDED") in changes
    server.broken = "/runs"
    with pytest.raises(PipelineError, match="The run itself goes on"):
        list(client.watch(endpoint, run_id, every_s=0.05, lost_s=0.2))
    server.broken = ""
    unknown = run_cli("pipeline", "watch", "run-9", "--endpoint", server.address)
    assert unknown.code == 2
    assert "(404)" in unknown.err
