"""The data card of the report: how many examples, how long, which answers, and what overlaps."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from exemplar.records import Example
from exemplar.retrieval.ranking import normalise

_SHOWN = 6  # labels that are named before "and N more"


@dataclass(frozen=True, slots=True)
class TaskCard:
    """One task's data. Lengths are of the queries of pool and test, in words between blanks.

    `answers` is text: the shares of labels, or of the right choice's place, among the test
    examples. `overlap` too: test examples whose query, or whose passage, the pool has as well.
    """

    task: str
    pool: int
    train: int
    test: int
    median_words: int
    most_words: int
    answers: str
    overlap: str


def describe(
    pool: Iterable[Example],
    train: Sequence[Example],
    test: Sequence[Example],
    labels: Mapping[str, Sequence[str]],
) -> list[TaskCard]:
    """Return one card a task, sorted by name. The pool, of which `train` is a part, is read once.

    `labels`: those of classification tasks, in order, by task.
    """
    asked: dict[str, list[Example]] = defaultdict(list)
    for example in test:
        asked[example.task].append(example)
    queries = {normalise(example.query) for example in test}
    groups = {(example.task, example.group) for example in test if example.group}
    lengths: dict[str, Counter[int]] = defaultdict(Counter)
    counts, seen, shared = Counter[str](), set[str](), set[tuple[str, str]]()
    for example in pool:
        counts[example.task] += 1
        lengths[example.task][len(example.query.split())] += 1
        if (query := normalise(example.query)) in queries:
            seen.add(query)
        if (group := (example.task, example.group)) in groups:
            shared.add(group)
    for example in test:
        lengths[example.task][len(example.query.split())] += 1
    learnt = Counter(example.task for example in train)
    return [
        TaskCard(
            task,
            counts[task],
            learnt[task],
            len(asked[task]),
            _median(lengths[task]),
            max(lengths[task]),
            _answers(asked[task], labels.get(task, ())),
            _overlap(asked[task], seen, shared),
        )
        for task in sorted(lengths)
    ]


def _median(lengths: Mapping[int, int]) -> int:
    """Return the lower median."""
    left = (sum(lengths.values()) - 1) // 2
    for length in sorted(lengths):
        left -= lengths[length]
        if left < 0:
            break
    return length


def _answers(examples: Sequence[Example], labels: Sequence[str]) -> str:
    if not examples:
        return ""
    if labels:
        counts = Counter(example.answer for example in examples)
        return _shares([(label, counts[label]) for label in labels], len(examples))
    if all(example.choices for example in examples):
        places = Counter((example.gold or 0) + 1 for example in examples)
        most = max(len(example.choices) for example in examples)
        pairs = [(f"choice {place}", places[place]) for place in range(1, most + 1)]
        return _shares(pairs, len(examples))
    distinct = len({example.answer for example in examples})
    return f"text, {distinct:,} different answer{'' if distinct == 1 else 's'}"


def _shares(counts: Sequence[tuple[str, int]], total: int) -> str:
    """Name the commonest, each with its share in percent."""
    ordered = sorted(counts, key=lambda pair: -pair[1])  # stable: equals keep their order
    text = ", ".join(f"{name} {100 * count / total:.0f}\u00a0%" for name, count in ordered[:_SHOWN])
    return text + (f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else "")


def _overlap(examples: Sequence[Example], seen: set[str], shared: set[tuple[str, str]]) -> str:
    same = sum(normalise(example.query) in seen for example in examples)
    passages = sum((example.task, example.group) in shared for example in examples)
    found = [f"{same:,} by query"] * (same > 0) + [f"{passages:,} by passage"] * (passages > 0)
    return ", ".join(found) or ("none" if examples else "")
