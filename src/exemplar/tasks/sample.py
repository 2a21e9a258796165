"""The embedded sample set: ten small tasks on which demonstrations matter (docs/sample-set.md).

Every text joins a topic (an article, a book, an event, shared by all answers) with an aspect that
alone decides the answer and is told in many phrasings. Word overlap leads to the topic; a
retriever that has learnt what helps the LM finds the aspect. As new texts in the world would,
three in five test texts use a phrasing that stands nowhere in the pool, two in five a known one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path

import yaml

from exemplar.records import Example
from exemplar.seeding import rng
from exemplar.tasks.sample_text import Kind, Material, fill, material
from exemplar.tasks.spec import TaskSpec, load_catalog

POOL_PER_TASK = 250
TRAIN_PER_TASK = 72
TEST_PER_TASK = 40
_NEW_SHARE = 0.3  # of each kind's phrasings, kept out of the pool
_NEW_IN_TEST = (True, False, True, False, True)  # whether a test text uses one of those, in turn
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
        pool_of_task, test_of_task = _write_task(spec, seed)
        pool += pool_of_task
        test += test_of_task
        if not spec.held_out:
            train += pool_of_task[:TRAIN_PER_TASK]  # as balanced as the whole, see _examples
    return {"pool": pool, "train": train, "test": test}


def _write_task(spec: TaskSpec, seed: int) -> tuple[list[Example], list[Example]]:
    """Return the task's pool and test examples."""
    written = material(spec.name)
    draw = rng(seed, "sample", spec.name)
    for_pool: dict[str, Iterator[str]] = {}
    for_test: dict[str, Iterator[str]] = {}
    for key, kind in written.kinds.items():
        phrasings = draw.sample(kind.ideas, len(kind.ideas))
        num_new = round(len(phrasings) * _NEW_SHARE)
        new, known = phrasings[:num_new], phrasings[num_new:]
        for_pool[key] = _even_turns(known, draw)
        for_test[key] = _mixed_turns(new, known, draw)
    told: set[tuple[str, str]] = set()  # shared: no test text is a near duplicate of the pool's
    pool = _examples(spec, written, for_pool, told, f"{spec.name}-pool", POOL_PER_TASK, draw)
    test = _examples(spec, written, for_test, told, f"{spec.name}-test", TEST_PER_TASK, draw)
    return pool, test


def _examples(
    spec: TaskSpec,
    written: Material,
    phrasings: dict[str, Iterator[str]],
    told: set[tuple[str, str]],
    prefix: str,
    count: int,
    draw: random.Random,
) -> list[Example]:
    """Return different examples; in any stretch of them all kinds are about equally frequent."""
    kinds = _even_turns(list(phrasings), draw)
    examples = []
    for number in range(count):
        key = next(kinds)
        idea = next(phrasings[key])
        slots = _fresh_slots(written, idea, told, draw)
        frame = draw.choice(written.frames)
        query = fill(frame, slots | {"idea": fill(idea, slots, draw)}, draw)
        answer = fill(written.kinds[key].answer, slots, draw)
        choices = _choices(spec, written.kinds, answer, draw)
        examples.append(
            Example(
                example_id=f"{prefix}-{number:03d}",
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


def _mixed_turns(new: Sequence[str], known: Sequence[str], draw: random.Random) -> Iterator[str]:
    """Yield phrasings for ever, new and known ones in the turns of `_NEW_IN_TEST`."""
    new_turns, known_turns = _even_turns(new, draw), _even_turns(known, draw)
    for is_new in cycle(_NEW_IN_TEST):
        yield next(new_turns if is_new else known_turns)


def _fresh_slots(
    written: Material, idea: str, told: set[tuple[str, str]], draw: random.Random
) -> dict[str, str]:
    """Return slots whose topic has not been told with this phrasing yet."""
    for _ in range(_MAX_DRAWS):
        slots = written.draw_slots(draw)
        if (text := (idea, slots[written.topic_slot])) not in told:
            told.add(text)
            return slots
    raise AssertionError(f"every topic has been told with the phrasing {idea!r}")


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
