"""Claims about trainings on several nodes: one model, one job, and nothing left running."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from exemplar.errors import ConfigError, PipelineError, TrainingError
from exemplar.kubeflow import trainjob
from exemplar.kubeflow.cluster import load_cluster
from exemplar.kubeflow.nodes import Nodes
from exemplar.kubeflow.placement import Placement

pytest.importorskip("kubeflow", reason="needs pip install 'exemplar[trainer]'")


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    path = Path(__file__).with_name("trainer_cluster.py")
    spec = importlib.util.spec_from_file_location("trainer_cluster", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with module.TrainerCluster(tmp_path) as running:
        monkeypatch.setattr(trainjob, "_connect", running.client)
        monkeypatch.setattr(trainjob, "PAUSE_S", 0.05)
        yield running


@pytest.fixture(scope="module")
def nodes(project):
    """What the nodes of a training get by the project's own file."""
    own = load_cluster(project / "infra/kubernetes/profile.yaml")
    placement = Placement(own, image="reg/exemplar-python:1", hardware="gpu-nodes")
    assert placement.nodes("llm_scoring") is None
    return Nodes.parse(placement.nodes("reward_training").text())


def train(workspace, folder, nodes):
    layout = workspace.layout
    section = workspace.profile.reward_training.model_copy(update={"dropout": 0.0})
    return trainjob.train(
        "reward_training",
        settings={"seed": workspace.profile.seed, "reward_training": section.model_dump_json()},
        arguments={
            "data": layout.data,
            "llm_scores": layout.round(1) / "llm_scores.parquet",
            "number": 1,
            "work": folder / "work" / "reward_training-00ff",
            "out": folder / "out",
        },
        nodes=nodes,
    )


def test_two_nodes_train_the_model_that_one_process_trains(
    cluster, workspace, tmp_path, nodes, capsys
):
    """Nodes that each train on their own would give whichever model was written last."""
    from safetensors.torch import load_file

    from exemplar import steps

    figures = train(workspace, tmp_path, nodes)
    alone = tmp_path / "alone"
    section = workspace.profile.reward_training.model_copy(update={"dropout": 0.0})
    expected = dict(
        steps.reward_training(
            workspace.profile.model_copy(update={"reward_training": section}),
            data=workspace.layout.data,
            llm_scores=workspace.layout.round(1) / "llm_scores.parquet",
            out=alone,
            number=1,
        )
    )
    assert figures.pop("updates_per_second") > 0
    assert expected.pop("updates_per_second") > 0
    assert figures == pytest.approx(expected, abs=1e-5)
    found, wanted = (load_file(path / "model.safetensors") for path in (tmp_path / "out", alone))
    for name, value in wanted.items():
        if not name.endswith("attention.self.key.bias"):  # its gradient is rounding alone
            assert (found[name] - value).abs().max() < 1e-4, name
    assert "TrainJob reward-training-00ff: 2 nodes" in capsys.readouterr().out
    assert cluster.deleted == ["reward-training-00ff"]
    assert [path.name for path in (tmp_path / "work").iterdir()] == []


def test_a_node_gets_what_the_clusters_file_says(cluster, workspace, tmp_path, nodes):
    """A node without its GPU trains for weeks; one as root, or without the cache, not at all."""
    cluster.command = [sys.executable, "-c", "import sys; sys.exit(1)"]
    with pytest.raises(TrainingError):
        train(workspace, tmp_path, nodes)
    (body,) = cluster.made
    from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob

    assert TrainerV1alpha1TrainJob.from_dict(body).to_dict() == body  # no field it does not know
    assert body["spec"]["activeDeadlineSeconds"] == nodes.hours * 3600
    trainer = body["spec"]["trainer"]
    assert trainer["image"] == "reg/exemplar-python:1-cuda"
    assert trainer["numNodes"] == 2
    assert trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == 1
    assert trainer["command"][:3] == ["torchrun", "-m", "exemplar.kubeflow.node"]
    (patch,) = body["spec"]["runtimePatches"]
    (job,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    template = job["template"]["spec"]["template"]
    assert template["metadata"]["annotations"] == {"sidecar.istio.io/inject": "false"}
    pod = template["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["nodeSelector"] == nodes.hardware.node_selector
    assert [item["key"] for item in pod["tolerations"]] == ["nvidia.com/gpu"]
    volumes = {volume["name"] for volume in pod["volumes"]}
    (container,) = pod["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    assert "/dev/shm" in {mount["mountPath"] for mount in container["volumeMounts"]}
    keys = {item["name"] for item in container["env"]}
    assert keys == set(nodes.secrets["exemplar-lm"])


def test_a_failed_job_says_its_last_words_and_makes_room_for_the_next_try(
    cluster, workspace, tmp_path, nodes, capsys
):
    """The log of a node is gone with its pod; a name that stays taken blocks every new try."""
    cluster.command = [sys.executable, "-c", "import sys; print('out of memory'); sys.exit(1)"]
    for _ in range(2):
        with pytest.raises(TrainingError, match="kubectl logs"):
            train(workspace, tmp_path, nodes)
    assert capsys.readouterr().out.count("out of memory\n") == 2
    assert len(cluster.made) == 2
    assert not (tmp_path / "out").exists()


FINISHED = """
import json, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
time.sleep(0.5)
(folder / "out").mkdir()
(folder / "out" / "model").write_text("weights")
(folder / "figures.json").write_text(json.dumps({"updates": 4}))
"""


def test_a_try_after_a_killed_one_waits_for_the_job_that_goes_on(
    cluster, workspace, tmp_path, nodes, monkeypatch, capsys
):
    """Two jobs would train the same model side by side, on twice the GPUs, into one folder."""
    folder = tmp_path / "work" / "reward_training-00ff-nodes"
    cluster.command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with monkeypatch.context() as patch:
        patch.setattr(trainjob, "_follow", lambda *_: (_ for _ in ()).throw(KilledError))
        with pytest.raises(KilledError):  # as SIGKILL does: nobody removes the job
            train(workspace, tmp_path, nodes)
    cluster.end("reward-training-00ff")
    script = [sys.executable, "-c", FINISHED, str(folder)]
    cluster._nodes["reward-training-00ff"] = [subprocess.Popen(script)]
    cluster.silent = True
    assert train(workspace, tmp_path, nodes) == {"updates": 4}
    assert (tmp_path / "out" / "model").read_text() == "weights"
    assert len(cluster.made) == 1
    assert capsys.readouterr().out.count("cannot be read") == 1


class KilledError(Exception):
    """Nothing after it runs, as after SIGKILL."""


def test_a_run_that_is_stopped_stops_its_nodes(cluster, workspace, tmp_path, nodes):
    """They would hold their GPUs for nobody until the deadline."""
    cluster.command = [sys.executable, "-c", "import time; time.sleep(60)"]

    def stop():
        while not cluster.made:
            time.sleep(0.05)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    stopping = threading.Thread(target=stop)
    stopping.start()
    with pytest.raises(SystemExit):
        train(workspace, tmp_path, nodes)
    stopping.join()
    assert cluster.deleted == ["reward-training-00ff"]
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_cluster_that_refuses_is_told_with_what_it_takes(cluster, workspace, tmp_path, nodes):
    """'Failed to get TrainJob' sends people to the training; the account's rights are missing."""
    cluster.refuse = 403
    with pytest.raises(PipelineError, match=r"Forbidden.*account\.yaml"):
        train(workspace, tmp_path, nodes)


def test_nodes_are_read_as_strictly_as_settings():
    """A pipeline edited by hand would train on one node, or as root."""
    with pytest.raises(ConfigError, match=r"(?s)nodes.*count"):
        Nodes.parse(json.dumps({"count": 1}))
