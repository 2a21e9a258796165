"""Claims about dvc.yaml: it says what the steps really do, so that DVC reruns that and no more."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

ROUNDS = ["r1", "r2"]
METHODS = ["zero_shot", "random", "kmeans", "bm25", "untrained"]
EACH_ROUND = [
    "llm_scoring",
    "reward_training",
    "reward_scoring",
    "kd_training",
    "search",
    "evaluation",
    "promotion",
]
OF_BASELINES = {
    f"{stage}@{m}" for stage in ("baseline_search", "baseline_evaluation") for m in METHODS
}
EVERYTHING = (
    {"download_data", "bm25_candidates", "report"}
    | {f"{stage}@{r}" for stage in EACH_ROUND for r in ROUNDS}
    | OF_BASELINES
)
ALL_OF_R2 = {f"{stage}@r2" for stage in EACH_ROUND}
EVALUATIONS = {f"evaluation@{r}" for r in ROUNDS} | {f"baseline_evaluation@{m}" for m in METHODS}
AT_THE_END = {"promotion@r1", "promotion@r2", "report"}

# In the order of running: a change, and the stages that it must make run again.
CHANGES = [
    ("profiles.demo.report.title", "Another title", {"report"}),
    ("profiles.demo.promotion.margin", 4.5, AT_THE_END),
    ("profiles.demo.evaluation.max_new_tokens", 9, EVALUATIONS | AT_THE_END),
    (
        "profiles.demo.kd_training.num_updates",
        17,
        {"kd_training@r1", "search@r1", "evaluation@r1"} | ALL_OF_R2 | AT_THE_END,
    ),
    ("profiles.paper.search.num_shots", 3, set()),
    (
        "src/exemplar/retrieval/baselines.py",
        "\n# touched\n",
        {f"{s}@{r}" for s in ("search", "evaluation") for r in ROUNDS}
        | ALL_OF_R2
        | OF_BASELINES
        | AT_THE_END,
    ),
    ("profiles.demo.seed", 1, EVERYTHING),
]

# What a step reads of the settings only where it works for a baseline, which has its own stage.
FOR_BASELINES_ALONE = {"search": {"bm25_candidates", "kd_training", "seed"}}

# A stand-in for the `exemplar` command: it notes what ran, and writes every output anew.
STAND_IN = """\
#!/bin/sh
echo "$DVC_STAGE: exemplar $*" >> "$DVC_ROOT/calls"
while read -r out; do
  case "$out" in
    *.*) file="$out" ;;
    *) file="$out/manifest.json" ;;
  esac
  mkdir -p "$(dirname "$file")"
  date "+$DVC_STAGE %s%N" > "$file"
done < "$DVC_ROOT/outs/$DVC_STAGE"
"""


@pytest.fixture(scope="module")
def stages(project, tmp_path_factory):
    """The stages as DVC unrolls them, by name."""
    from dvc.repo import Repo

    root = tmp_path_factory.mktemp("dvc") / "project"
    copy_project(project, root)
    with Repo(str(root)) as repo:
        repo.check_graph(stages=repo.index.stages)
        return {stage.name: facts(stage, root) for stage in repo.index.stages}


def copy_project(project: Path, root: Path, *, baselines: Sequence[str] = METHODS) -> None:
    """Copy what DVC looks at, and make it a project of its own.

    DVC parses params.yaml once a stage, so what the tests have no use for is left out of it.
    """
    for name in ("dvc.yaml", "params.yaml", "mlflow/served_model.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(project / name, root / name)
    document = yaml.safe_load((root / "params.yaml").read_text())
    document["baselines"] = {name: document["baselines"][name] for name in baselines}
    paper = {"search": document["profiles"]["paper"]["search"]}
    document["profiles"] = {"demo": document["profiles"]["demo"], "paper": paper}
    (root / "params.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(project / "src/exemplar", root / "src/exemplar", ignore=ignored)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], cwd=root, check=True)


def facts(stage, root: Path) -> dict[str, object]:
    def path(item):
        return Path(item.fs_path).relative_to(root).as_posix()

    parameters = {}
    for dependency in stage.deps:
        if hasattr(dependency, "params"):
            parameters[path(dependency)] = list(dependency.params)
    return {
        "cmd": stage.cmd,
        "deps": [path(d) for d in stage.deps if not hasattr(d, "params")],
        "outs": [path(out) for out in stage.outs],
        "params": parameters.get("params.yaml", []),
    }


def test_the_graph_holds_every_stage_once_and_no_other(stages):
    """A stage that is missing from the graph is never run, and nobody is told."""
    assert set(stages) == EVERYTHING


def test_every_command_is_one_of_the_command_line(stages):
    """A misspelt command fails after hours, when its turn comes."""
    import typer

    from exemplar.cli import app

    commands = typer.main.get_command(app).commands
    for name, stage in stages.items():
        program, command, *options = shlex.split(stage["cmd"])
        assert program == "exemplar"
        step, _, target = name.partition("@")
        assert command == step.removeprefix("baseline_").replace("_", "-")
        context = commands[command].make_context(command, list(options))  # raises on a wrong option
        if target:
            given = {
                key: value
                for key, value in context.params.items()
                if context.get_parameter_source(key).name == "COMMANDLINE"
            }
            expected = target if step.startswith("baseline_") else int(target.removeprefix("r"))
            assert list(given.values()) == [expected]


def test_every_file_of_a_run_is_declared_by_one_stage_and_every_declared_file_is_written(
    stages, workspace
):
    """An undeclared file is neither cached nor restored; a declared one not written is an error."""
    declared = [out for stage in stages.values() for out in stage["outs"]]
    assert len(set(declared)) == len(declared)
    for out in declared:
        assert (workspace.root / out).exists(), out
    own = {"params.yaml", "mlflow.db", "mlartifacts"}  # settings, and the registry's own store
    for path in workspace.root.rglob("*"):
        relative = path.relative_to(workspace.root)
        if path.is_file() and relative.parts[0] not in own:
            owners = [out for out in declared if relative.is_relative_to(out)]
            assert len(owners) == 1, f"{relative}: {owners}"


def test_every_dependency_exists_or_is_made_by_another_stage(stages, project):
    """DVC finds a misspelt path only when it comes to the stage."""
    made = [out for stage in stages.values() for out in stage["outs"]]
    for name, stage in stages.items():
        for dependency in stage["deps"]:
            in_a_made_one = any(Path(dependency).is_relative_to(out) for out in made)
            holds_made_ones = any(Path(out).is_relative_to(dependency) for out in made)
            exists = dependency.startswith(("src/", "mlflow/")) and (project / dependency).exists()
            assert in_a_made_one or holds_made_ones or exists, f"{name}: {dependency}"


def test_every_watched_setting_exists_and_every_setting_is_watched(stages, project):
    """A setting that no stage watches can be changed without anything being run again."""
    raw = yaml.safe_load((project / "params.yaml").read_text())
    watched = {key for stage in stages.values() for key in stage["params"]}

    def value_at(key):
        value = raw
        for part in key.split("."):
            value = value[part]  # a KeyError names the setting that is not there
        return value

    for key in watched:
        value_at(key)
    profile = raw["profile"]
    for section in raw["profiles"][profile]:
        assert f"profiles.{profile}.{section}" in watched
    for baseline in raw["baselines"]:
        assert f"baselines.{baseline}" in watched
    assert "rounds" in watched


def test_a_stage_watches_every_setting_that_its_step_reads(stages, project):
    """Otherwise DVC would call a result up to date that was made with other settings."""
    modules = (project / f"src/exemplar/{name}.py" for name in ("steps", "steps_scoring"))
    nodes = [node for path in modules for node in ast.parse(path.read_text()).body]
    functions = {node.name: node for node in nodes if isinstance(node, ast.FunctionDef)}
    for name, stage in stages.items():
        step = name.partition("@")[0]
        read = {
            node.attr
            for node in ast.walk(functions[step.removeprefix("baseline_")])
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "profile"
        }
        watched = {key.split(".")[2] for key in stage["params"] if key.startswith("profiles.")}
        assert read - watched <= FOR_BASELINES_ALONE.get(step, set()), name


@pytest.fixture(scope="module")
def finished(stages, project, tmp_path_factory):
    """A project in which every stage is up to date, with a line of text as every output."""
    root = tmp_path_factory.mktemp("finished") / "project"
    copy_project(project, root)
    for name, stage in stages.items():
        for out in stage["outs"]:
            path = root / out if Path(out).suffix else root / out / "manifest.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{name} {out}\n")
    subprocess.run([sys.executable, "-m", "dvc", "commit", "-f", "-q"], cwd=root, check=True)
    assert outdated(root) == set()
    return root


@pytest.mark.parametrize(("what", "value", "expected"), CHANGES, ids=[c[0] for c in CHANGES])
def test_a_change_outdates_what_depends_on_it_and_nothing_else(finished, what, value, expected):
    """Too little leaves stale results in the report; too much costs hours of LM time."""
    path = finished / (what if "/" in what else "params.yaml")
    before = path.read_bytes()
    try:
        change(finished, what, value)
        assert outdated(finished) == expected
    finally:
        path.write_bytes(before)


def outdated(root: Path) -> set[str]:
    """The stages that DVC finds changed, and all that depend on them."""
    import networkx
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        changed = {name.rpartition(":")[2] for name in repo.status()}
        graph = networkx.relabel_nodes(repo.index.graph, lambda stage: stage.name)
    return changed.union(*(networkx.ancestors(graph, name) for name in changed))


@pytest.mark.parametrize(
    ("name", "where", "needed"),
    [
        ("epr", "params.yaml", {"download_data", "bm25_candidates", "llm_scoring@r1"}),
        ("llm_r", "docs/method.md", {"download_data"}),
    ],
)
def test_one_line_trains_a_retriever_beside_the_rounds(project, tmp_path, name, where, needed):
    """EPR costs a training: it runs where it is asked for, after what it learns from, no more."""
    import networkx
    from dvc.repo import Repo

    root = tmp_path / "project"
    copy_project(project, root, baselines=["bm25"])
    text = (root / "params.yaml").read_text()
    assert "trained: {}" in text
    (line,) = re.findall(rf"(trained: {{{name}: .*}}}})", (project / where).read_text())
    (root / "params.yaml").write_text(text.replace("trained: {}", line))
    with Repo(str(root)) as repo:
        graph = networkx.relabel_nodes(repo.index.graph, lambda stage: stage.name)
        found = {stage.name: facts(stage, root) for stage in repo.index.stages}
    steps = ("kd_training", "search", "evaluation")
    ours = {f"trained_{step}@{name}" for step in steps}
    assert {stage for stage in found if name in stage} == ours
    for step in steps:
        stage, twin = found[f"trained_{step}@{name}"], found[f"{step}@r1"]
        assert stage["cmd"] == f"exemplar {step.replace('_', '-')} --baseline {name}"
        # It watches what the round's own stage watches: both call one function.
        assert {key for key in stage["params"] if not key.startswith("trained.")} == set(
            twin["params"]
        )
        assert {path for path in twin["deps"] if path.startswith("src/")} <= set(stage["deps"])
    last = f"trained_evaluation@{name}"
    assert networkx.descendants(graph, last) == ours - {last} | needed
    assert networkx.ancestors(graph, last) == AT_THE_END


@pytest.fixture
def store(monkeypatch):
    """The address of an empty bucket on a server that speaks S3, with credentials for it."""
    pytest.importorskip("dvc_s3")
    boto3 = pytest.importorskip("boto3")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket="bucket")
    yield f"http://{host}:{port}"
    server.stop()


def test_outputs_go_to_s3_and_come_back_and_nothing_is_run_again(
    finished, project, store, tmp_path
):
    """A colleague's pull after which everything is computed anew would cost days of LM time."""
    from dvc.repo import Repo

    root = tmp_path / "project"
    shutil.copytree(finished, root)
    before = outputs(root)
    documented = re.findall(
        r"^(dvc remote \w+ .*?)(?: +#.*)?$", (project / "docs/operations.md").read_text(), re.M
    )
    told = [command for command in documented if "s3://" in command or "endpointurl" in command]
    assert len(told) == 2
    for command in told:
        words = shlex.split(command.replace("https://STORE", store))[1:]
        subprocess.run([sys.executable, "-m", "dvc", *words], cwd=root, check=True)
    with Repo(str(root)) as repo:
        assert repo.push() > 0
    for name in {path.split("/")[0] for path in before}:
        path = root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(root / ".dvc/cache")
    shutil.rmtree(root / ".dvc/tmp")
    with Repo(str(root)) as repo:
        repo.pull()
    assert outputs(root) == before
    nothing = {**os.environ, "PATH": ""}  # there is no `exemplar` that it could run
    command = [sys.executable, "-m", "dvc", "repro"]
    done = subprocess.run(command, cwd=root, env=nothing, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "up to date" in done.stdout


def outputs(root: Path) -> dict[str, bytes]:
    """Every file that a stage wrote."""
    others = {".dvc", "src", "mlflow", "dvc.yaml", "dvc.lock", "params.yaml", ".dvcignore"}
    files = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    return {
        path.as_posix(): (root / path).read_bytes()
        for path in files
        if path.parts[0] not in others and path.name != ".gitignore"
    }


@pytest.mark.slow
def test_repro_runs_every_stage_once_in_order_and_then_only_what_changed(stages, project, tmp_path):
    """The graph alone does not prove it: this runs DVC, with a stand-in for the command."""
    root = tmp_path / "project"
    copy_project(project, root, baselines=["bm25"])
    here = {name for name in EVERYTHING if not name.startswith("baseline_") or "bm25" in name}
    (root / "bin").mkdir()
    (root / "bin/exemplar").write_text(STAND_IN)
    (root / "bin/exemplar").chmod(0o755)
    (root / "outs").mkdir()
    for name in here:
        (root / "outs" / name).write_text("".join(f"{out}\n" for out in stages[name]["outs"]))

    first = reproduce(root, stages)
    assert sorted(first) == sorted(here)
    assert first.index("promotion@r1") < first.index("promotion@r2")  # one champion at a time
    assert first.index("search@r1") < first.index("llm_scoring@r2")
    assert first[-1] == "report"
    assert reproduce(root, stages) == []
    change(root, "profiles.demo.promotion.margin", 4.5)
    assert set(reproduce(root, stages)) == AT_THE_END


def reproduce(root: Path, stages: dict[str, dict[str, object]]) -> list[str]:
    """Run `dvc repro` with the stand-in; return the stages that ran, in order."""
    calls = root / "calls"
    calls.write_text("")
    environment = {**os.environ, "PATH": f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "-m", "dvc", "repro", "-q"]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ran = []
    for line in calls.read_text().splitlines():
        name, _, called = line.partition(": ")
        assert called == stages[name]["cmd"]
        ran.append(name)
    return ran


def change(root: Path, what: str, value: object) -> None:
    """Change a setting of params.yaml, or add a line to a file."""
    if what.startswith("src/"):
        with (root / what).open("a") as file:
            file.write(str(value))
        return
    document = yaml.safe_load((root / "params.yaml").read_text())
    *parents, last = what.split(".")
    section = document
    for name in parents:
        section = section[name]
    assert section[last] != value
    section[last] = value
    (root / "params.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
