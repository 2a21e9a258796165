"""One row of a released file as a record, and a record as the very line that it came from.

The files are JSON lines, made by the paper's code (microsoft/LMOps, llm_retriever):
passages.jsonl.gz by misc/format_all_tasks.py with {contents, task_name, id}, contents being query,
line break, answer; train and test likewise with {query, options, answers, task_name, query_id}; the
scored ones by src/inference/ with doc_ids and doc_scores beside those. A passage's id is its place
in the file, and the passages of a task are all its training rows in their order; a query_id is
<task>_<split>_<row>, so <task>_train_<row> stands for the passage <row> places behind the task's
first. Multiple choice has several options and a letter as the answer; all else has [""].
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from exemplar.errors import DataError
from exemplar.records import Candidates, Example, Rewards

_LETTERS = "ABCD"
_NO_OPTIONS = [""]
_QUESTION = {"query_id", "query", "answers", "options", "task_name"}
COLUMNS = {
    "passages": {"id", "contents", "task_name"},
    "train": _QUESTION,
    "test": _QUESTION,
    "bm25_train": _QUESTION | {"doc_ids", "doc_scores"},
    "kd_bm25_train": _QUESTION | {"doc_ids", "doc_scores"},
    "kd_it2_train": _QUESTION | {"doc_ids", "doc_scores"},
}
"""Each file's columns. Passages may come without their id, which says nothing new."""

Values = dict[str, Any]


@dataclass(frozen=True)
class Numbering:
    """Which passage is whose: `starts`, each task's first passage; `total`, their number."""

    starts: Mapping[str, int]
    total: int

    def passage_of(self, query_id: str, task: str) -> int:
        """Return the place of a training query's own passage."""
        row = query_id.removeprefix(f"{task}_train_")
        if row == query_id or not row.isdecimal() or task not in self.starts:
            raise DataError(
                f"query_id {query_id!r}: expected {task}_train_<row>, with passages of that task."
            )
        return self.starts[task] + int(row)

    def query_id(self, example: Example) -> str:
        """Return a training query's id in the released files."""
        return f"{example.task}_train_{int(example.example_id) - self.starts[example.task]}"

    def task_of(self, place: int) -> str:
        """Return the task of a passage."""
        firsts, tasks = self._in_order
        return tasks[bisect_right(firsts, place) - 1]

    @cached_property
    def _in_order(self) -> tuple[list[int], list[str]]:
        pairs = sorted((first, task) for task, first in self.starts.items())
        return [first for first, _ in pairs], [task for _, task in pairs]


def passage(values: Values, place: int) -> Example:
    """Return a passage as a pool example: its last line that says something is the answer."""
    contents = _text(values, "contents")
    cut = contents.rstrip().rfind("\n")
    return Example(
        example_id=str(place),
        task=_text(values, "task_name"),
        query=contents[: max(cut, 0)],
        answers=(contents[cut + 1 :],),
    )


def passage_values(example: Example, place: int) -> Values:
    """Return the passage that a pool example was."""
    return {"id": str(place), "contents": example.text, "task_name": example.task}


def question(values: Values, example_id: str) -> Example:
    """Return a training or test query with its answers."""
    options, answers = _texts(values, "options"), _texts(values, "answers")
    task, query = _text(values, "task_name"), _text(values, "query")
    if len(options) < 2:
        return Example(example_id, task, query, answers)
    gold = _LETTERS.find(answers[0]) if answers and len(answers[0]) == 1 else -1
    if not 0 <= gold < len(options):
        raise DataError(
            f"answers are {list(answers)}, expected one letter for one of {len(options)} options."
        )
    return Example(example_id, task, query, (options[gold],), choices=options, gold=gold)


def question_values(example: Example, query_id: str) -> Values:
    """Return the row that a query was."""
    multiple = example.gold is not None
    return {
        "query_id": query_id,
        "query": example.query,
        "answers": [_LETTERS[example.gold or 0]] if multiple else list(example.answers),
        "options": list(example.choices) or _NO_OPTIONS,
        "task_name": example.task,
    }


def scored(values: Values) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Return a row's passages and their scores."""
    scores = values.get("doc_scores")
    if not isinstance(scores, list) or not all(type(score) in (int, float) for score in scores):
        raise DataError(f"doc_scores must be a list of numbers, got {str(scores)[:60]}.")
    return _texts(values, "doc_ids"), tuple(map(float, scores))


def scored_values(question: Values, ids: Sequence[str], scores: Sequence[float]) -> Values:
    """Return the row of a query whose passages are scored."""
    return {**question, "doc_ids": list(ids), "doc_scores": list(scores)}


def scores_of(record: Candidates | Rewards) -> tuple[float, ...]:
    """Return a record's scores, whatever they are called."""
    return record.rewards if isinstance(record, Rewards) else record.similarities


def line(values: Values, columns: Sequence[str]) -> str:
    """Return a row as the paper's code writes it (src/utils.py, save_dataset)."""
    chosen = {name: values[name] for name in columns}
    return json.dumps(chosen, ensure_ascii=False, separators=(",", ":")) + "\n"


def _text(values: Values, name: str) -> str:
    value = values.get(name)
    if not isinstance(value, str):
        raise DataError(f"{name} must be a text, got {str(value)[:60]}.")
    return value


def _texts(values: Values, name: str) -> tuple[str, ...]:
    value = values.get(name)
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise DataError(f"{name} must be a list of texts, got {str(value)[:60]}.")
    return tuple(value)
