"""The embedded sample set: ten small tasks on which demonstrations matter (docs/sample-set.md).

Every text joins a topic (an article, a book, an event, shared by all answers) with an aspect that
alone decides the answer and is told in many phrasings. Word overlap leads to the topic; a
retriever that has learnt what helps the LM finds the aspect. Each aspect's phrasings are split:
the test texts use phrasings that stand nowhere in the pool, as new texts in the world would.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from exemplar.records import Example
from exemplar.seeding import rng
from exemplar.tasks.sample_text import Kind, Material, fill, material
from exemplar.tasks.spec import TaskSpec, load_catalog

POOL_PER_TASK = 250
TRAIN_PER_TASK = 72
TEST_PER_TASK = 40
_TEST_SHARE = 0.3  # of the phrasings of each kind
_NUM_CHOICES = 4
_MAX_DRAWS = 1000  # for one text that differs from all before it


def specs() -> dict[str, TaskSpec]:
    """Return the sample set's tasks by name, in the order of their catalogue."""
    catalog = load_catalog()
    names = yaml.safe_load(Path(__file__).with_name("sample_catalog.yaml").read_text("utf-8"))
    return {name: catalog[name] for name in names}


def generate(seed: int) -> dict[str, list[Example]]:
    """Return the splits `pool`, `train` (examples of the pool, same ids) and `test`.

    `train` has none of the held-out tasks. The same seed gives the same examples on any machine;
    another seed draws other texts and sets other phrasings aside for the test.
    """
    pool: list[Example] = []
    train: list[Example] = []
    test: list[Example] = []
    for spec in specs().values():
        writing = material(spec.name)
        phrasings = _split_phrasings(spec, writing, seed)
        pool_of_task = _examples(spec, writing, phrasings["pool"], "pool", POOL_PER_TASK, seed)
        pool += pool_of_task
        test += _examples(spec, writing, phrasings["test"], "test", TEST_PER_TASK, seed)
        if not spec.held_out:
            train += pool_of_task[:TRAIN_PER_TASK]  # as balanced as the whole, see _examples
    return {"pool": pool, "train": train, "test": test}


def _split_phrasings(
    spec: TaskSpec, writing: Material, seed: int
) -> dict[str, dict[str, list[str]]]:
    """Return split -> key of the kind -> phrasings; none stands in both splits."""
    split: dict[str, dict[str, list[str]]] = {"pool": {}, "test": {}}
    for key, kind in writing.kinds.items():
        ideas = list(kind.ideas)
        rng(seed, "sample", spec.name, "phrasings", key).shuffle(ideas)
        num_test = round(len(ideas) * _TEST_SHARE)
        split["test"][key], split["pool"][key] = ideas[:num_test], ideas[num_test:]
    return split


def _examples(
    spec: TaskSpec,
    writing: Material,
    phrasings: dict[str, list[str]],
    split: str,
    count: int,
    seed: int,
) -> list[Example]:
    """Return different examples; in any stretch of them all kinds are about equally frequent."""
    draw = rng(seed, "sample", spec.name, split)
    kinds = _even_turns(list(phrasings), draw)
    turns = {key: _even_turns(ideas, draw) for key, ideas in phrasings.items()}
    seen: set[tuple[str, str]] = set()
    examples = []
    for number in range(count):
        key = next(kinds)
        slots = _fresh_slots(writing, idea := next(turns[key]), seen, draw)
        query = _compose(writing.frames, idea, slots, draw)
        answer = fill(writing.kinds[key].answer, slots, draw)
        choices = _choices(spec, writing.kinds, answer, draw)
        examples.append(
            Example(
                example_id=f"{spec.name}-{split}-{number:03d}",
                task=spec.name,
                query=query,
                answers=(answer,),
                choices=choices,
                gold=choices.index(answer) if choices else None,
            )
        )
    return examples


def _even_turns(values: Sequence[str], draw: random.Random) -> Iterator[str]:
    """Yield the values for ever, each once in every turn, the turns in different orders."""
    while True:
        yield from draw.sample(values, len(values))


def _fresh_slots(
    writing: Material, idea: str, seen: set[tuple[str, str]], draw: random.Random
) -> dict[str, str]:
    """Return slots whose topic has not been told with this phrasing: no near duplicates."""
    for _ in range(_MAX_DRAWS):
        slots = writing.draw_slots(draw)
        if (told := (idea, slots[writing.topic_slot])) not in seen:
            seen.add(told)
            return slots
    raise AssertionError(f"every topic has been told with the phrasing {idea!r}")


def _compose(frames: Sequence[str], idea: str, slots: dict[str, str], draw: random.Random) -> str:
    """Return a text: the idea, filled, in one of the frames."""
    return fill(draw.choice(frames), slots | {"idea": fill(idea, slots, draw)}, draw)


def _choices(
    spec: TaskSpec, kinds: dict[str, Kind], answer: str, draw: random.Random
) -> tuple[str, ...]:
    """Return the answer among others, in any order; () unless the task is multiple choice."""
    if spec.kind != "multiple_choice":
        return ()
    others = [kind.answer for kind in kinds.values() if kind.answer != answer]
    options = [answer, *draw.sample(others, _NUM_CHOICES - 1)]
    draw.shuffle(options)
    return tuple(options)
