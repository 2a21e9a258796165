"""Claims about compiled pipelines: the same bytes every time, nothing dangling, every pod as told.

`python tests/pipelines/test_kubeflow_compile.py` renews the golden outline after a wanted change.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from exemplar.config import load_params
from exemplar.errors import ConfigError
from exemplar.kubeflow import arguments
from exemplar.kubeflow.cluster import load_cluster
from exemplar.kubeflow.compiling import compile_pipeline
from exemplar.kubeflow.nodes import Nodes
from exemplar.kubeflow.placement import Placement
from exemplar.kubeflow.plan import Plan
from exemplar.layout import STEPS

PROJECT = Path(__file__).parents[2]
CLUSTER = PROJECT / "infra/kubernetes/profile.yaml"
GOLDEN = Path(__file__).parent / "golden" / "iteration.yaml"
BESIDE = {"open_run", "close_run", "start_run"}


def compiled(out: Path, name: str = "iteration", hardware: str = "gpu-small", **plan) -> list:
    """Compile a pipeline of the demo's settings; return the documents of the file."""
    params = load_params(PROJECT / "params.yaml")
    placement = Placement(load_cluster(CLUSTER), image="reg/exemplar-python:1", hardware=hardware)
    defaults = arguments.of_profile(params.profiles["demo"], params.baselines)
    compile_pipeline(name, Plan(placement, **plan), defaults, out, project=PROJECT)
    return list(yaml.safe_load_all(out.read_text()))


@pytest.fixture(scope="module")
def iteration(tmp_path_factory):
    out = tmp_path_factory.mktemp("compiled") / "iteration.yaml"
    return compiled(out, rounds=2, shards=2, early_stop=True)


def outline(spec: dict) -> dict:
    """The graph alone: what runs after what, on what, under which condition."""
    graph = {}
    for name, component in {"root": spec["root"], **spec["components"]}.items():
        for task, body in component.get("dag", {}).get("tasks", {}).items():
            kept = (
                "componentRef",
                "dependentTasks",
                "inputs",
                "parameterIterator",
                "triggerPolicy",
            )
            graph.setdefault(name, {})[task] = {key: body[key] for key in kept if key in body}
    return graph


def part_tasks(component: dict) -> list[dict]:
    return list(component.get("dag", {}).get("tasks", {}).values())


def steps_of(spec: dict) -> dict[str, str]:
    """The step of every executor, by the executor's name."""
    return {
        component["executorLabel"]: component["executorLabel"]
        .removeprefix("exec-")
        .rstrip("-0123456789")
        .replace("-", "_")
        for component in spec["components"].values()
        if "executorLabel" in component
    }


def test_the_graph_is_the_golden_one(iteration):
    """A step that no longer waits for another runs on what is not there, days into a run."""
    found = yaml.safe_dump(outline(iteration[0]), sort_keys=True)
    assert found == GOLDEN.read_text(), f"if this is wanted: python {__file__}"


def test_two_compilations_are_the_same_bytes(project, tmp_path):
    """A version on a server is named after its content; a file that moves is uploaded each time."""
    code = (
        "import sys; from exemplar.cli import main; "
        f"main(['pipeline', 'compile', 'round', '--out', {str(tmp_path)!r} + '/' + sys.argv[1]])"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code, seed], cwd=project, env=environment(seed))
        for seed in ("1", "2")
    ]
    assert [process.wait() for process in running] == [0, 0]
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def environment(seed: str) -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONHASHSEED": seed}


@pytest.mark.parametrize(
    ("name", "plan"),
    [
        ("iteration", {"rounds": 1}),
        ("iteration", {"rounds": 2, "shards": 3, "early_stop": True}),
        ("round", {"shards": 2, "retriever": "models:/exemplar-retriever@champion"}),
        ("round", {"number": 4, "hardware": "gpu-nodes"}),
    ],
)
def test_a_compiled_pipeline_is_whole_and_valid(tmp_path, check_whole, name, plan):
    """KFP finds a misspelt field or a dangling name only once the run has come that far."""
    spec, platform = compiled(tmp_path / "out.yaml", name, **plan)
    check_whole(spec, platform)
    tasks = [task for part in spec["components"].values() for task in part_tasks(part)]
    several = {
        task["componentRef"]["name"]: Nodes.parse(given["runtimeValue"]["constant"])
        for task in tasks
        if (given := task.get("inputs", {}).get("parameters", {}).get("nodes"))
    }
    if plan.get("hardware") != "gpu-nodes":
        assert not several  # one pod each, and nothing of Kubeflow Trainer
        return
    assert set(several) == {"comp-reward-training", "comp-kd-training"}
    assert {nodes.count for nodes in several.values()} == {2}
    executors = spec["deploymentSpec"]["executors"]
    for step, on_gpu in (("reward-training", False), ("llm-scoring", True)):
        assert ("accelerator" in executors[f"exec-{step}"]["container"]["resources"]) == on_gpu


def test_a_step_gets_the_settings_that_its_stage_watches(iteration, project):
    """With less it cannot run; with more, a change of anything makes a cluster do it again."""
    stages = yaml.safe_load((project / "dvc.yaml").read_text())["stages"]
    spec, _ = iteration
    for component in spec["components"].values():
        step = steps_of(spec).get(component.get("executorLabel"))
        if step not in STEPS or step in ("promotion", "report"):  # these log and name everything
            continue
        given = set(component["inputDefinitions"].get("parameters", {})) & set(arguments.SECTIONS)
        bodies = [stages[name] for name in (step, f"baseline_{step}") if name in stages]
        watched = {
            key.split(".")[2]
            for body in bodies
            for key in body.get("do", body)["params"]
            if key.startswith("profiles.")
        }
        assert given == watched, step


def test_every_pod_gets_what_the_clusters_file_says(iteration):
    """A GPU step without its GPU runs for weeks; one as root is refused, or worse, is not."""
    cluster = load_cluster(CLUSTER)
    spec, platform = iteration
    pods = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    steps = steps_of(spec)
    assert set(steps.values()) == {*STEPS, *BESIDE}
    fan_in = {
        spec["components"][task["componentRef"]["name"]]["executorLabel"]
        for component in spec["components"].values()
        for task in component.get("dag", {}).get("tasks", {}).values()
        if "shares" in task.get("inputs", {}).get("artifacts", {})
    }
    assert len(fan_in) == 6
    for name, step in steps.items():
        own, pod = cluster.steps[step], pods[name]
        heavy = own.model and name not in fan_in
        hardware = cluster.hardware["gpu-small" if heavy else "light"]
        container = spec["deploymentSpec"]["executors"][name]["container"]
        assert container["image"] == "reg/exemplar-python:1" + hardware.image_suffix
        resources = container["resources"]
        assert resources["resourceCpuRequest"] == hardware.cpu.request
        assert resources["resourceMemoryLimit"] == hardware.memory.limit
        if heavy:
            expected = {"resourceType": "nvidia.com/gpu", "resourceCount": "1"}
            assert resources["accelerator"].items() >= expected.items()
            assert pod["nodeSelector"]["labels"] == {"exemplar/gpu": "small"}
            assert pod["tolerations"][0]["key"] == "nvidia.com/gpu"
            assert pod["emptyDirMounts"][0]["mountPath"] == "/dev/shm"
        else:
            assert "accelerator" not in resources
            assert not {"nodeSelector", "tolerations", "emptyDirMounts"} & set(pod)
        assert pod["activeDeadlineSeconds"] == str(own.timeout_hours * 3600)
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == "1000"
        assert [mount["mountPath"] for mount in pod["pvcMount"]] == ["/cache"]
        assert {item["secretName"] for item in pod.get("secretAsEnv", [])} == set(own.secrets)
        assert pod["podMetadata"]["labels"].items() >= cluster.labels.items()


def test_steps_that_resume_are_tried_again_with_growing_pauses(iteration):
    """A node that is lost in the third day must not cost the other two."""
    cluster = load_cluster(CLUSTER)
    spec, _ = iteration
    steps = steps_of(spec)
    for component in [spec["root"], *spec["components"].values()]:
        for task in component.get("dag", {}).get("tasks", {}).values():
            label = spec["components"][task["componentRef"]["name"]].get("executorLabel")
            if label:
                retries = cluster.steps[steps[label]].retries
                policy = task.get("retryPolicy", {})
                assert policy.get("maxRetryCount", 0) == retries
                if retries:
                    assert (policy["backoffDuration"], policy["backoffFactor"]) == ("30s", 2.0)
    from exemplar.kubeflow.pod import RESUMING

    assert all(cluster.steps[step].retries >= 3 for step in RESUMING)


def test_a_round_after_a_refused_one_stands_inside_its_condition(iteration):
    """Otherwise a retriever that the gate refused teaches the next one for days."""
    conditions = [
        task["triggerPolicy"]["condition"]
        for component in iteration[0]["components"].values()
        for task in component.get("dag", {}).get("tasks", {}).values()
        if "condition" in task.get("triggerPolicy", {})
    ]
    assert conditions == ["inputs.parameter_values['pipelinechannel--promotion-Output'] == true"]


def test_the_pipelines_defaults_are_the_profile_itself(iteration, project):
    """A null that is lost, or a number that turns into a float, is another setting."""
    params = load_params(project / "params.yaml")
    inputs = iteration[0]["root"]["inputDefinitions"]["parameters"]
    given = {name: inputs[name]["defaultValue"] for name in arguments.SECTIONS}
    profile = arguments.profile_of(given)
    for name in arguments.SECTIONS:
        assert getattr(profile, name) == getattr(params.profiles["demo"], name)
    assert json.loads(given["download_data"])["path"] is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("compile", "rounds"), "expected one of iteration, round"),
        (("compile", "--hardware", "tpu"), "expected one of light, cpu, gpu-small"),
        (("compile", "--cluster", "none.yaml"), "none.yaml does not exist"),
        (("compile", "--set", "kd_training.num_update=3"), "no 'num_update' here"),
        (("compile", "--set", "kd_training.num_updates=few"), "valid integer"),
        (("compile", "--profile", "huge"), "known: demo, cpu, paper"),
        (("compile", "--retriever", "models:/a@b"), "iteration begins with BM25"),
        (("compile", "round", "--retriever", "champion"), "expected a model of the registry"),
        (("run", "none.yaml"), "Write it with `exemplar pipeline compile`"),
        (("run", "params.yaml"), "no compiled pipeline"),
    ],
)
def test_a_wrong_option_is_one_message(run_cli, project, monkeypatch, options, words):
    """A traceback of KFP's compiler says nothing about the option."""
    monkeypatch.chdir(project)
    done = run_cli("pipeline", *options)
    assert done.code == 2
    assert words in done.err


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("request: 4Gi", "requested: 4Gi", "did you mean 'request'"),
        ("  light:\n", "  lite:\n", "no 'light'"),
        ("secrets: [exemplar-lm]", "secrets: [lm]", "'lm' is not among the secrets"),
        ("timeout_hours: 72", "timeout_hours: 0", "greater than or equal to 1"),
    ],
)
def test_a_wrong_line_in_the_clusters_file_is_named(tmp_path, old, new, words):
    """The pod that it was meant for may start days later."""
    path = tmp_path / "profile.yaml"
    path.write_text(CLUSTER.read_text().replace(old, new))
    with pytest.raises(ConfigError, match=words):
        load_cluster(path)


def test_pages_of_the_components_are_those_that_their_code_gives(project):
    """A page that names an input which is gone sends people into a failing run."""
    command = [sys.executable, "components/describe.py", "--check"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stderr}run: python components/describe.py"


if __name__ == "__main__":
    spec, _ = compiled(GOLDEN, rounds=2, shards=2, early_stop=True)
    GOLDEN.write_text(yaml.safe_dump(outline(spec), sort_keys=True))
