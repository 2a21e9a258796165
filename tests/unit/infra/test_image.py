"""Claims about the images and about the check that replays them."""

import os
import re
import sys
from pathlib import Path

import pytest
from kfp import dsl
from kfp.compiler import Compiler
from kfp.dsl import Dataset, Input

IMAGES = {"infra/Dockerfile": ("cpu", "cuda", "demo"), "mlflow/Dockerfile": ("server",)}
TARGETS = [(path, target) for path, targets in IMAGES.items() for target in targets]


@pytest.fixture(params=TARGETS, ids=lambda param: "-".join(param))
def image(project, request):
    from dockerfile import read

    path, target = request.param
    return read(project / path), target


def test_an_image_runs_as_a_plain_user_on_a_pinned_base(image):
    """A pod that must not run as root refuses the image; a base that moves breaks a rebuild."""
    read, target = image
    users = [stage.last("USER") for stage in read.chain(target) if stage.last("USER")]
    assert users[-1] == "1000:1000"
    bases = {stage.base for stage in read.needed(target)} - set(read.stages)
    assert bases
    assert all(re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+", base) for base in bases)


def test_nothing_is_installed_where_it_stays_in_the_image(image):
    """Build tools and package caches in the image are weight, and a way in."""
    read, target = image
    for stage in read.chain(target):
        for step in stage.instructions:
            assert not (step.name == "RUN" and re.search(r"\b(pip|uv|apt-get|curl)\b", step.value))
            assert "/opt/build" not in step.value or step.name != "COPY"


def test_every_install_is_pinned_and_kfp_comes_alone(image):
    """The requirements of kfp pin requests and urllib3, and bring a cluster client."""
    read, target = image
    found = 0
    for stage in read.needed(target):
        for step in stage.instructions:
            for command in step.value.split("&&") if step.name == "RUN" else ():
                if " install " not in command or "install --directory" in command:
                    continue
                found += 1
                own_package = command.rstrip().endswith(" .") and "--no-deps" in command
                assert "--constraint constraints.txt" in command or own_package, command
                assert not re.search(r"\bdvc\b", command)
                if "kfp" in command:
                    assert "--no-deps" in command
    assert found >= 2


def test_steps_ask_for_pinned_packages_and_not_for_dvc(project):
    """A package that a step needs and the extra does not name is missed in the pod alone."""
    from image import UNWANTED, asked

    pinned = {
        re.match(r"[\w.-]+", line)[0]
        for line in (project / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    assert asked("steps") <= pinned
    assert not asked("steps") & UNWANTED
    assert {"torch", "transformers", "mlflow", "boto3", "openai"} <= asked("steps")


def test_the_build_sees_what_it_copies(image, project):
    """.dockerignore names what is let in; a COPY of anything else fails at the build alone."""
    read, target = image
    rules = (project / ".dockerignore").read_text().splitlines()
    assert "*" in rules
    let_in = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    for stage in read.needed(target):
        for step in stage.instructions:
            if step.name == "COPY" and "from" not in step.flags:
                for source in step.value.split()[:-1]:
                    assert (project / source).exists(), source
                    assert source.split("/")[0] in let_in, source


def test_the_guides_name_files_and_targets_that_exist(project):
    """A command that is copied from a guide and fails ends the trust in the rest of it."""
    makefile = (project / "Makefile").read_text()
    for name in ("README.md", "docs/operations.md", "mlflow/README.md", "infra/compose.yaml"):
        text = (project / name).read_text()
        for target in re.findall(r"(?<![\w-])make ((?:image|services)[\w-]*)", text):
            assert f"\n{target}: " in makefile, f"{name}: make {target}"
        for path in re.findall(r"(?<![\w./-])((?:infra|overlays|base)/[\w./*-]+[\w/])", text):
            root = project / ("" if path.startswith("infra") else "infra/kubernetes")
            found = list(root.glob(path)) or path in ("infra/.env", "infra/kubernetes/profile.yaml")
            assert found, f"{name}: {path}"


TOY = """ARG BASE=python:3.11.15-slim-trixie
FROM ${BASE} AS made
ENV WORD=hello GREETING=/opt/made
WORKDIR /opt/made
COPY text.txt ./
RUN --mount=type=cache,target=/x cat text.txt > /opt/made/out \\
    && echo "$WORD" >> $GREETING/out  # of /opt/
FROM ${BASE} AS last
RUN useradd somebody
COPY --from=made /opt/made /opt/made
USER 1000:1000
"""


def test_a_replay_runs_the_steps_below_its_own_folder(tmp_path):
    """A step left out, or one that wrote outside, would make the check worthless."""
    import dockerfile
    from replay import Replay, ReplayError

    (tmp_path / "Dockerfile").write_text(TOY)
    (tmp_path / "text.txt").write_text("copied\n")
    read = dockerfile.read(tmp_path / "Dockerfile")
    replay = Replay(read, tmp_path / "root", tmp_path)
    assert replay.build("last") == ["useradd somebody"]
    assert (tmp_path / "root/opt/made/out").read_text() == "copied\nhello\n"

    (tmp_path / "text.txt").unlink()
    with pytest.raises(ReplayError, match=r"text\.txt"):
        replay.build("last")
    (tmp_path / "Dockerfile").write_text(TOY + "VOLUME /data\n")
    with pytest.raises(ValueError, match=r"Dockerfile:12: VOLUME"):
        dockerfile.read(tmp_path / "Dockerfile")


@dsl.component(base_image="exemplar-python", packages_to_install=[], install_kfp_package=False)
def reads(data: Input[Dataset]) -> int:
    from pathlib import Path

    from exemplar.data.dataset import read_dataset

    return len(read_dataset(Path(data.path)).pool)


@dsl.component(base_image="exemplar-python", packages_to_install=[], install_kfp_package=False)
def lacks() -> int:
    import no_such_library

    return no_such_library.answer


def test_an_executor_without_data_answers_and_one_without_a_library_fails(tmp_path, project):
    """The check must tell a missing file, which a run brings, from a broken image."""
    import executors

    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.defpath}",
        "PYTHONPATH": str(project / "src"),
        "TMPDIR": str(tmp_path),
    }
    answers = {}
    for component in (reads, lacks):
        path = tmp_path / f"{component.name}.yaml"
        Compiler().compile(component, str(path))
        [executor] = executors.executors(path)
        answers[component.name] = executors.run(
            executor, folder=tmp_path / component.name, cwd=tmp_path, environment=environment
        )
    assert answers["reads"].fine
    assert "exemplar.errors.DataError" in answers["reads"].said
    assert not answers["lacks"].fine
    assert "ModuleNotFoundError: No module named 'no_such_library'" in answers["lacks"].said
