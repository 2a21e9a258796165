"""Check an image without a container engine: replay its installation, start its executors.

The install steps of the Dockerfile run in a folder that stands for the image. Then

- the packages must be those that constraints.txt pins, without the tools that built them,
- every module of Exemplar and every library that a step may ask for must load,
- the command of every executor of a compiled pipeline must start there as a pod starts it. It
  answers if it runs to its end, or stops because it was given no data; what is missing in the image
  (a module, a command, a permission) is a failure.

Without --pipeline a small pipeline is compiled, and must run to its end. The base image, the user
and read-only folders are not replayed.

Examples:
    python infra/checks/image.py
    python infra/checks/image.py --target demo --pipeline pipelines/iteration.yaml
    python infra/checks/image.py --target server                 # MLflow's image, mlflow/Dockerfile
    python infra/checks/image.py --prefix build/image --reuse    # only the checks, once more
    python infra/checks/image.py --preinstall torch              # by pip, as it is configured
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

import dockerfile
import executors
from replay import Replay, ReplayError

PROJECT = Path(__file__).resolve().parents[2]
STEPS, SERVER = ("infra/Dockerfile", "/opt/exemplar"), ("mlflow/Dockerfile", "/opt/mlflow")
TARGETS = {"cpu": STEPS, "cuda": STEPS, "demo": STEPS, "server": SERVER}
"""For each target its file, and the virtual environment in its image."""
UNWANTED = {"dvc", "kfp-kubernetes", "kfp-server-api", "pip", "uv", "pytest", "mypy"}


def main() -> int:
    """Replay, check and tell. The exit code is 1 where something is wrong."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="image-") as temporary:
        prefix = (options.prefix or Path(temporary) / "image").resolve()
        replay = Replay(dockerfile.read(PROJECT / TARGETS[options.target][0]), prefix, PROJECT)
        try:
            wrong = _check(replay, options, Path(temporary))
        except (ReplayError, OSError, ValueError) as error:
            wrong = [str(error)]
    for line in wrong:
        print(f"WRONG: {line}", file=sys.stderr)
    print("The image is wrong." if wrong else "The image is right.")
    return 1 if wrong else 0


def _check(replay: Replay, options: argparse.Namespace, temporary: Path) -> list[str]:
    if not options.reuse:
        started = time.monotonic()
        for step in replay.build(options.target, options.preinstall):
            print(f"not replayed: {step}")
        print(f"installed in {time.monotonic() - started:.0f} s")
    for folder in sorted(replay.path("/opt").iterdir()):
        if folder.name != "build":
            print(f"/opt/{folder.name}: {_megabytes(folder):.1f} MB")
    for_steps = TARGETS[options.target] is STEPS
    wrong = _wrong_packages(_inside(replay, options.target, "packages"))
    named = asked("steps") | {"exemplar"} if for_steps else asked("server", with_core=False)
    wrong += _inside(replay, options.target, "imports", *sorted(named))
    if for_steps:
        wrong += _wrong_executors(replay, options, temporary)
    return wrong


def _wrong_packages(packages: dict[str, str]) -> list[str]:
    found = {_plain(name): version for name, version in packages.items()}
    pinned: dict[str, set[str]] = {}
    for line in (PROJECT / "constraints.txt").read_text().splitlines():
        if match := re.match(r"([\w.-]+)==([^\s;]+)", line):
            pinned.setdefault(_plain(match[1]), set()).add(match[2])
    print(f"{len(found)} packages")
    wrong = [f"{name} has no place in the image" for name in sorted(UNWANTED & found.keys())]
    for name, version in sorted(found.items()):
        if name != "exemplar" and version.partition("+")[0] not in pinned.get(name, set()):
            wrong.append(f"{name} {version} is not what constraints.txt pins")
    return wrong


def _wrong_executors(replay: Replay, options: argparse.Namespace, temporary: Path) -> list[str]:
    wrong = []
    pipelines = [(pipeline, {}) for pipeline in options.pipeline or []] or [_probe(temporary)]
    for pipeline, parameters in pipelines:
        for number, executor in enumerate(executors.executors(pipeline)):
            started = time.monotonic()
            answer = executors.run(
                executor,
                folder=temporary / pipeline.stem / str(number),
                cwd=replay.folder(options.target),
                environment=_pod(replay, options.target),
                parameters=parameters,
            )
            print(f"{answer.executor}: {time.monotonic() - started:.1f} s, {answer.said}")
            if not answer.fine or (not options.pipeline and answer.outputs is None):
                wrong.append(f"{answer.executor}: {answer.said}")
    return wrong


def _probe(folder: Path) -> tuple[Path, dict[str, str]]:
    """Compile infra/checks/probe.py; return the file, and the parameters that it is run with."""
    from kfp.compiler import Compiler
    from probe import probe

    from exemplar.config import load_params

    path = folder / "probe.yaml"
    Compiler().compile(probe, str(path))
    demo = load_params(PROJECT / "params.yaml").profiles["demo"]
    return path, {"profile": demo.model_dump_json()}


def asked(extra: str, *, with_core: bool = True) -> set[str]:
    """The packages that an extra of Exemplar names, and the extras that it names in turn."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    names, lines = set(), list(project["optional-dependencies"][extra])
    if with_core:
        lines += project["dependencies"]
    for line in lines:
        name, extras = re.match(r"([\w.-]+)(?:\[([\w,-]+)\])?", line).groups()
        if _plain(name) == "exemplar":
            names |= set().union(*(asked(inner) for inner in extras.split(",")))
        else:
            names.add(_plain(name))
    return names


def _inside(replay: Replay, target: str, *arguments: str) -> Any:
    """Ask inside.py, run by the image's own Python."""
    python = str(replay.path(TARGETS[target][1]) / "bin" / "python")
    done = subprocess.run(
        [python, str(Path(__file__).with_name("inside.py")), *arguments],
        cwd=replay.folder(target),
        env=_pod(replay, target),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise ReplayError(f"Python stopped in the image: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _pod(replay: Replay, target: str) -> dict[str, str]:
    """The environment of a pod; offline, so that a check never waits for a hub."""
    return replay.environment(target) | {"HF_HUB_OFFLINE": "1"}


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _megabytes(folder: Path) -> float:
    return sum(path.lstat().st_size for path in folder.rglob("*")) / 1e6


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", default="cpu", choices=TARGETS, help="default: cpu")
    parser.add_argument(
        "--pipeline", type=Path, action="append", metavar="FILE", help="a compiled pipeline"
    )
    parser.add_argument("--prefix", type=Path, help="the folder to install into; it is kept")
    parser.add_argument("--reuse", action="store_true", help="check the folder as it is")
    parser.add_argument(
        "--preinstall",
        action="append",
        default=[],
        metavar="REQUIREMENT",
        help="let pip install this first, from where pip looks on this machine",
    )
    options = parser.parse_args()
    if options.reuse and not options.prefix:
        parser.error("--reuse needs --prefix, the folder of an earlier check.")
    return options


if __name__ == "__main__":
    sys.exit(main())
