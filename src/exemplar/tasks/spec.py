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
      query: "{sentence}"           # template over the row's columns, or a list of such wordings

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
task whose training rows fill this task's pool; without `query`: whose pool it uses), `hub` (where
the rows are published: `id`, `config`, `revision`, and the names of the splits that are used as
`train` and `test`).

Placeholders: `{column}` or `{column.key}`. Whitespace in a value becomes single spaces: a blank
line would part two demonstrations. Lists are joined by ", " (lists of lists: " | ", then "; ").
"""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from exemplar.errors import TaskError
from exemplar.tasks.entry import parse

Kind = Literal["classification", "multiple_choice", "generation"]


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """One task: what it is, and how a row of its data becomes an `Example`.

    `labels`: the label texts, in the catalogue's order, each once (classification only).
    `label_values`: raw value -> label text, or None where such rows are left out.
    `choices`: templates of the options; a single placeholder in `choices_list` instead where a
    column holds them all. `train_spec`: the task that renders the rows of `train_from`.
    `wordings`: templates of the query, of which number `wording`, from 0, is used.
    """

    name: str
    category: str
    kind: Kind
    metric: str
    held_out: bool = False
    description: str = ""
    labels: tuple[str, ...] = ()
    label_values: Mapping[str, str | None] = field(default_factory=dict)
    wordings: tuple[str, ...] = ()
    wording: int = 0
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
    hub: Mapping[str, str] = field(default_factory=dict)

    @property
    def from_rows(self) -> bool:
        """Whether the task says how rows become examples."""
        return bool(self.wordings)

    def worded(self, number: int) -> TaskSpec:
        """Return the task with another of its wordings. Raises `TaskError` where it has none."""
        if not 0 <= number < max(1, len(self.wordings)):
            raise TaskError(
                f"task {self.name!r} has no wording {number}; it has {len(self.wordings)}, "
                "numbered from 0. Set download_data.wording to one that all chosen tasks have."
            )
        train_spec = self.train_spec and self.train_spec.worded(number)
        return replace(self, wording=number, train_spec=train_spec)


def load_catalog(path: Path | None = None, *, alone: bool = False) -> dict[str, TaskSpec]:
    """Return every task by name: the built-in ones and, if given, those of one's own file.

    `alone`: the file's tasks and no built-in one, whose names it may then use for its own.

    Raises `TaskError`, naming file, task and key, on anything the format does not know, and where
    two entries claim one name.
    """
    catalog = {} if alone else dict(_built_in())
    if path:
        _read_into(catalog, path)
    return {
        name: replace(spec, train_spec=catalog.get(spec.train_from, spec))
        if spec.train_from
        else spec
        for name, spec in catalog.items()
    }


@cache
def _built_in() -> Mapping[str, TaskSpec]:
    catalog: dict[str, TaskSpec] = {}
    for file in sorted(Path(__file__).parent.glob("*catalog.yaml")):
        _read_into(catalog, file)
    return catalog


def _read_into(catalog: dict[str, TaskSpec], file: Path) -> None:
    for name, entry in _read_yaml(file).items():
        if name in catalog:
            raise TaskError(f"{file}: task {name!r} is already defined. Choose another name.")
        catalog[name] = TaskSpec(**parse(file, name, entry))


def select(catalog: Mapping[str, TaskSpec], names: Iterable[str]) -> list[TaskSpec]:
    """Return the named tasks, each once, in the order of the names.

    Raises `TaskError` on no name, an unknown one (with the nearest known) and a repeated one.
    """
    chosen: list[TaskSpec] = []
    for name in names:
        if name not in catalog:
            near = difflib.get_close_matches(name, catalog, n=3)
            hint = f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(catalog)}."
            raise TaskError(f"there is no task {name!r}. {hint}")
        if catalog[name] in chosen:
            raise TaskError(f"task {name!r} is named twice. Name each task once.")
        chosen.append(catalog[name])
    if not chosen:
        raise TaskError(f"no task is named. Known: {', '.join(catalog)}.")
    return chosen


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping; plain YAML keeps the last one silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _value in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                break  # refused below, by YAML itself
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except FileNotFoundError:
        raise TaskError(f"the task catalogue {file} does not exist.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise TaskError(f"{file} is not a readable task catalogue: {error}") from error
    if not isinstance(content, dict) or not content:
        raise TaskError(f"{file}: expected a mapping from task names to entries, got {content!r}.")
    return content
