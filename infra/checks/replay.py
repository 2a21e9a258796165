"""Replays the install steps of a Dockerfile in a folder, without a container engine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from dockerfile import Dockerfile, Stage, assignments, substituted

ROOTS = ("opt", "exemplar", "cache")
"""The folders at the root of the image that belong to it alone."""

_OF_THE_CALLER = re.compile(r"(?:PIP|UV|SSL|HTTPS?|NO)_\w+", re.IGNORECASE)  # mirrors and proxies


class ReplayError(Exception):
    """A step that cannot be replayed, or that failed."""


class Replay:
    """A folder that stands for the file system of the image.

    Folders in `ROOTS` are moved below `prefix`, in commands and in ENV alike. Two stages that write
    one folder cannot be told apart in it, so a COPY between stages must keep the path.
    """

    def __init__(self, dockerfile: Dockerfile, prefix: Path, context: Path):
        self.dockerfile, self.prefix, self.context = dockerfile, prefix, context

    def moved(self, text: str) -> str:
        """Put the image's own folders below the prefix, wherever a text names them."""
        return re.sub(rf"(?<![\w./-])/({'|'.join(ROOTS)})\b", rf"{self.prefix}/\1", text)

    def path(self, path: str) -> Path:
        """Where a path of the image lies here."""
        return Path(self.moved(path))

    def environment(self, target: str) -> dict[str, str]:
        """What a process in a stage finds: ENV from first to last, on a plain PATH."""
        values = {"PATH": f"{self._base_commands()}:{os.defpath}"}
        for stage in self.dockerfile.chain(target):
            for step in stage.instructions:
                if step.name == "ENV":
                    values |= assignments(self.moved(substituted(step.value, values)))
        return values

    def _base_commands(self) -> Path:
        """A folder with the interpreter under the base image's names; Debian knows it by one."""
        folder = self.prefix / "base"
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("python", "python3"):
            if not (folder / name).is_symlink():
                (folder / name).symlink_to(Path(sys.executable).resolve())
        return folder

    def folder(self, target: str) -> Path:
        """The working folder of a stage, made if it is missing."""
        named = [stage.last("WORKDIR") for stage in self.dockerfile.chain(target)]
        folder = self.path([name for name in named if name][-1])
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def build(self, target: str, preinstall: Sequence[str] = ()) -> list[str]:
        """Run the install steps of all stages that `target` needs; return the steps left out.

        `preinstall`: requirements that pip installs first, as it is configured on this machine; uv
        then finds them installed and does not look for another build.
        """
        (self.prefix / "cache").mkdir(parents=True, exist_ok=True)
        left_out = []
        for stage in self.dockerfile.needed(target):
            environment = self.environment(stage.name)
            for name in ("PIP_CACHE_DIR", "UV_CACHE_DIR"):  # this machine's own are warm
                environment.pop(name, None)
            environment |= {k: v for k, v in os.environ.items() if _OF_THE_CALLER.fullmatch(k)}
            if preinstall:
                environment.pop("UV_TORCH_BACKEND", None)
            first = stage.base not in self.dockerfile.stages
            for step in stage.instructions:
                if step.name == "COPY":
                    self._copy(stage, step.value, step.flags.get("from"))
                elif step.name == "RUN" and "/opt/" not in step.value:
                    left_out.append(step.value)
                elif step.name == "RUN":
                    self._run(stage, step.value, environment)
                    if preinstall and first:
                        self._run(stage, _by_pip(preinstall), environment)
                    first = False
        return left_out

    def _run(self, stage: Stage, command: str, environment: dict[str, str]) -> None:
        print(f"{stage.name}: {command}", flush=True)
        done = subprocess.run(
            ["sh", "-ec", self.moved(command)], cwd=self.folder(stage.name), env=environment
        )
        if done.returncode:
            raise ReplayError(f"stage {stage.name}: exit code {done.returncode}: {command}")

    def _copy(self, stage: Stage, value: str, source: str | None) -> None:
        *names, into = value.split()
        if source is not None:
            if names != [into]:
                raise ReplayError(f"stage {stage.name}: COPY {value} moves a path between stages.")
            return
        folder = self.folder(stage.name) / self.moved(into)
        for name in names:
            path = self.context / name
            if not path.exists():
                raise ReplayError(f"stage {stage.name}: COPY {name}: there is no such file.")
            folder.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                shutil.copytree(path, folder, dirs_exist_ok=True)
            else:
                shutil.copy(path, folder)


def _by_pip(requirements: Sequence[str]) -> str:
    return (
        '/opt/build/tools/bin/python -m pip --python "$VIRTUAL_ENV/bin/python" install --quiet '
        "--constraint constraints.txt " + " ".join(requirements)
    )
