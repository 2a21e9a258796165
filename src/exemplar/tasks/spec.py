"""The tasks as data: one YAML entry a task, read strictly into a frozen `TaskSpec`.

An entry of a catalogue file (`tasks/catalog.yaml`, `tasks/sample_catalog.yaml`, or one's own):

    sst2:
      category: sentiment           # group of tasks, averaged together in reports
      kind: classification          # classification | multiple_choice | generation
      metric: accuracy              # one of tasks/metrics.py
      held_out: false               # true: in the pool and the tests, never in training
      description: Is a piece of a film review positive or negative?
      labels: {0: negative, 1: positive}    # raw value -> label text; null: such rows are left out
      label: label                  # classification: the column of the raw value
      query: "{sentence}"           # template over the row's columns

`category`, `kind`, `metric` and, for classification, `labels` are required; labels that need no map
are a plain list of texts. A task that comes as ready examples (the sample set) needs no more. One
that is rendered from rows needs `query` and, by kind:

- classification: `label`, a column;
- multiple_choice: `choices`, a list of templates or one placeholder that holds a list, and `gold`,
  a column with the 0-based index, or `{column: answerKey, among: choices.label}` (the index is the
  value's place in that list), or `{column: answer, values: {"1": 0, "2": 1}}`;
- generation: `answer`, a template, or one placeholder that may hold a list of accepted answers.

Optional: `group` (the column of a passage that examples share), `replace` (text -> text, applied
to every value), `max_words` (longer values are cut there), `train_from` (the folder of another
task whose training rows fill this task's pool), `hub` (where the rows are published).

Placeholders: `{column}` or `{column.key}`. Whitespace in a value becomes single spaces: a blank
line would part two demonstrations. Lists are joined by ", " (lists of lists: " | ", then "; ").
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from exemplar.errors import TaskError
from exemplar.tasks import metrics

Kind = Literal["classification", "multiple_choice", "generation"]


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """One task: what it is, and how a row of its data becomes an `Example`.

    `labels`: the label texts, in the catalogue's order, each once (classification only).
    `label_values`: raw value -> label text, or None where such rows are left out.
    `choices`: templates of the options; a single placeholder in `choices_list` instead where a
    column holds them all. `train_spec`: the task that renders the rows of `train_from`.
    """

    name: str
    category: str
    kind: Kind
    metric: str
    held_out: bool = False
    description: str = ""
    labels: tuple[str, ...] = ()
    label_values: Mapping[str, str | None] = field(default_factory=dict)
    query_template: str = ""
    label_column: str = ""
    choices: tuple[str, ...] = ()
    choices_list: str = ""
    gold_column: str = ""
    gold_among: str = ""
    gold_values: Mapping[str, int] = field(default_factory=dict)
    answer_template: str = ""
    group_column: str = ""
    replacements: Mapping[str, str] = field(default_factory=dict)
    max_words: int = 0
    train_from: str = ""
    train_spec: TaskSpec | None = None
    hub: Mapping[str, Any] = field(default_factory=dict)

    @property
    def from_rows(self) -> bool:
        """Whether the task says how rows become examples."""
        return bool(self.query_template)


_ = fields, replace, difflib, get_args, Iterable, Sequence, Path, metrics, TaskError
