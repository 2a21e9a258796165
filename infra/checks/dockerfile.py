"""Reads the part of the Dockerfile language that this project's images use.

Known: FROM, ARG before the first FROM, ENV, WORKDIR, COPY, RUN in its shell form, USER, EXPOSE,
ENTRYPOINT and CMD. Anything else is an error, so that a replay never leaves out a step unseen.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_KNOWN = {"FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "USER", "EXPOSE", "ENTRYPOINT", "CMD"}
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


@dataclass(frozen=True)
class Instruction:
    """One instruction: its name, its flags (`--from=build`) and what follows, on one line."""

    name: str
    flags: Mapping[str, str]
    value: str
    line: int


@dataclass
class Stage:
    """A stage: what it starts from (another stage or an image) and its instructions."""

    name: str
    base: str
    instructions: list[Instruction] = field(default_factory=list)

    def copied_from(self) -> list[str]:
        """The stages that files are copied from."""
        return [step.flags["from"] for step in self.instructions if "from" in step.flags]

    def last(self, name: str) -> str | None:
        """The value of the last instruction of a name, which is the one that holds."""
        values = [step.value for step in self.instructions if step.name == name]
        return values[-1] if values else None


@dataclass(frozen=True)
class Dockerfile:
    """The stages by name, in order, and the defaults of the global arguments."""

    stages: Mapping[str, Stage]
    arguments: Mapping[str, str]

    def chain(self, target: str) -> list[Stage]:
        """The stages that `target` is built on, the first first, itself last."""
        stage = self.stages[target]
        return [*(self.chain(stage.base) if stage.base in self.stages else []), stage]

    def needed(self, target: str) -> list[Stage]:
        """Every stage that building `target` runs, in the order of the file."""
        wanted, open_ones = set(), [target]
        while open_ones:
            for stage in self.chain(open_ones.pop()):
                if stage.name not in wanted:
                    wanted.add(stage.name)
                    open_ones.extend(stage.copied_from())
        return [stage for name, stage in self.stages.items() if name in wanted]


def substituted(text: str, values: Mapping[str, str]) -> str:
    """Put values in the place of $NAME and ${NAME}; a name without a value becomes empty."""
    return _VARIABLE.sub(lambda found: values.get(found[1] or found[2], ""), text)


def assignments(value: str) -> dict[str, str]:
    """Read the NAME=value pairs of an ENV."""
    return dict(pair.split("=", 1) for pair in shlex.split(value))


def read(path: Path) -> Dockerfile:
    """Read a Dockerfile. Raises `ValueError` with the line for anything that is not known here."""
    stages: dict[str, Stage] = {}
    arguments: dict[str, str] = {}
    stage: Stage | None = None
    for step in _instructions(path.read_text(encoding="utf-8")):
        where = f"{path}:{step.line}"
        if step.name not in _KNOWN:
            known = ", ".join(sorted(_KNOWN))
            raise ValueError(f"{where}: {step.name} is not known here, only {known}.")
        if step.name == "FROM":
            words = substituted(step.value, arguments).split()
            if len(words) != 3 or words[1].upper() != "AS":
                raise ValueError(f"{where}: expected FROM image AS name, got {step.value!r}.")
            stage = stages[words[2]] = Stage(words[2], words[0])
        elif stage is not None:
            stage.instructions.append(step)
        elif step.name == "ARG":
            name, _, default = step.value.partition("=")
            arguments[name] = default
        else:
            raise ValueError(f"{where}: {step.name} before the first FROM.")
    return Dockerfile(stages, arguments)


def _instructions(text: str) -> Iterator[Instruction]:
    """Join continued lines, leave out comments, and take flags apart."""
    parts: list[str] = []
    start = 0
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        start = start or number
        parts.append(stripped.removesuffix("\\").strip())
        if not stripped.endswith("\\"):
            name, _, rest = " ".join(parts).partition(" ")
            flags = {}
            while match := re.match(r"--([\w-]+)(?:=(\S+))?\s+", rest):
                flags[match[1]] = match[2] or ""
                rest = rest[match.end() :]
            yield Instruction(name.upper(), flags, rest, start)
            parts, start = [], 0
