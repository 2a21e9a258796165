"""The texts of the embedded sample set: hand-written phrases, composed by a seeded draw.

`sample_text/<task>.yaml` holds one task:

    slots:                 # name -> values; one value of each is drawn for an example
    frames:                # sentences around the idea: {slot}, {idea}
    kinds:                 # label or key -> {answer?, ideas}: phrasings of one and the same aspect
    events: true           # slots come from sample_text/events.yaml (inference, paraphrase)

`[one|another]` is replaced by one of the alternatives; `{Slot}` with a capital starts a sentence.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

_FOLDER = Path(__file__).with_name("sample_text")
_ALTERNATIVES = re.compile(r"\[([^\[\]]+)\]")
_SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Kind:
    """One aspect that decides the answer: its answer (a template) and its many phrasings."""

    answer: str
    ideas: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Material:
    """Everything written for one task; `events` replace the slots where they are given."""

    slots: Mapping[str, tuple[str, ...]]
    frames: tuple[str, ...]
    kinds: dict[str, Kind]
    events: tuple[Mapping[str, str], ...] = ()

    @property
    def topic_slot(self) -> str:
        """The slot that says what a text is about, whatever its answer."""
        return "object" if self.events else next(iter(self.slots))

    def draw_slots(self, rng: random.Random) -> dict[str, str]:
        """Return one value for each slot."""
        values = {name: rng.choice(choices) for name, choices in self.slots.items()}
        if self.events:
            values |= rng.choice(self.events)
            others = [name for name in self.slots["name"] if name != values["name"]]
            values["other"] = rng.choice(others)
        return values


@cache
def material(task: str) -> Material:
    """Return what is written for a task of `sample_catalog.yaml`."""
    content = _read(task)
    kinds = {
        key: Kind(kind.get("answer", key), tuple(kind["ideas"]))
        for key, kind in content["kinds"].items()
    }
    frames = tuple(content["frames"])
    if not content.get("events"):
        slots = {name: tuple(values) for name, values in content["slots"].items()}
        return Material(slots, frames, kinds)
    shared = _read("events")
    return Material(
        slots={"name": tuple(shared["names"]), "day": tuple(shared["days"])},
        frames=frames,
        kinds=kinds,
        events=tuple(
            dict(zip(("base", "past", "passive", "object"), event, strict=True))
            for event in shared["events"]
        ),
    )


def fill(template: str, slots: Mapping[str, str], rng: random.Random) -> str:
    """Return the template with its alternatives drawn and its slots filled."""
    text = _ALTERNATIVES.sub(lambda match: rng.choice(match[1].split("|")), template)

    def value(match: re.Match[str]) -> str:
        name = match[1]
        filled = slots[name.lower()]
        return filled[0].upper() + filled[1:] if name[0].isupper() else filled

    return _SLOT.sub(value, text)


def _read(name: str) -> Any:
    # the C loader, where PyYAML was built with it, is ten times as fast
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    text = (_FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    return yaml.load(text, Loader=loader)
