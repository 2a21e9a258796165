"""From a row of a data set to an `Example`, as its task's entry says (see `tasks/spec.py`)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from exemplar.errors import TaskError
from exemplar.records import Example
from exemplar.tasks.entry import PLACEHOLDER, raw_key
from exemplar.tasks.spec import TaskSpec

Row = Mapping[str, Any]


class EmptyFieldError(TaskError):
    """A row has nothing in a field that its task needs; `reason` says which, without the row."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}. Leave the row out, or fill the field.")
        self.reason = reason


def render(spec: TaskSpec, row: Row, example_id: str) -> Example:
    """Return the row as an `Example`.

    Raises `TaskError`, naming row and field, where a column is missing or a value does not fit,
    and its subclass `EmptyFieldError` where a needed field is empty or the row has no label.
    """
    if not spec.from_rows:
        raise TaskError(
            f"task {spec.name!r} has no 'query' in its catalogue entry, so no row of data can be "
            "rendered for it. It comes ready made with the sample set."
        )
    return _Row(spec, row, f"task {spec.name!r}, row {example_id!r}").example(example_id)


def cut_fields(spec: TaskSpec, row: Row) -> list[str]:
    """Return the query's fields of which a row that renders loses words beyond `max_words`."""
    if not spec.max_words:
        return []
    one = _Row(spec, row, f"task {spec.name!r}")
    fields = dict.fromkeys(PLACEHOLDER.findall(spec.wordings[spec.wording]))
    return [field for field in fields if len(one.words(field)) > spec.max_words]


class _Row:
    """One row while it is rendered; every refusal names the row."""

    def __init__(self, spec: TaskSpec, row: Row, where: str) -> None:
        self.spec, self.row, self.where = spec, row, where

    def example(self, example_id: str) -> Example:
        spec = self.spec
        query = self.fill(spec.wordings[spec.wording], max_words=spec.max_words)
        choices: tuple[str, ...] = ()
        answers: tuple[str, ...]
        gold = None
        if spec.kind == "classification":
            answers = (self.label(),)
        elif spec.kind == "multiple_choice":
            choices = self.choices()
            gold = self.gold(len(choices))
            answers = (choices[gold],)
        else:
            answers = self.texts(spec.answer_template)
        group = str(self.value(spec.group_column)) if spec.group_column else ""
        return Example(
            example_id=example_id,
            task=spec.name,
            query=query,
            answers=answers,
            choices=choices,
            gold=gold,
            # a group may be a whole passage: its digest names it as well
            group=hashlib.sha256(group.encode()).hexdigest()[:16] if group else "",
        )

    def value(self, path: str) -> Any:
        """Return what stands in a column, or under a key of it ("answers.text")."""
        value: Any = self.row
        for key in path.split("."):
            if value == []:
                return value
            if isinstance(value, list) and all(isinstance(item, Mapping) for item in value):
                # a list of records, where other formats keep a record of lists
                value = {name: [item.get(name) for item in value] for name in value[0]}
            if not isinstance(value, Mapping) or key not in value:
                there = ", ".join(map(str, value)) if isinstance(value, Mapping) else repr(value)
                raise TaskError(
                    f"{self.where}: there is no {path!r}; the row has: {there}. "
                    "Mend the row, or name the right column in the task's catalogue entry."
                )
            value = value[key]
        return value

    def fill(self, template: str, max_words: int = 0) -> str:
        """Return the template with its placeholders filled, each value cut to `max_words`."""

        def text(path: str) -> str:
            words = self.words(path)
            return " ".join([*words[:max_words], "..."] if 0 < max_words < len(words) else words)

        return PLACEHOLDER.sub(lambda match: text(match[1]), template).strip()

    def words(self, path: str) -> list[str]:
        return self.clean(_joined(self.value(path)), path).split(" ")

    def texts(self, template: str) -> tuple[str, ...]:
        """Return a template's text, or all texts of the list that its one placeholder holds."""
        match = PLACEHOLDER.fullmatch(template)
        value = self.value(match[1]) if match else None
        if match and isinstance(value, Sequence) and not isinstance(value, str):
            if not value:
                raise EmptyFieldError(self.where, f"empty {match[1]!r}")
            return tuple(dict.fromkeys(self.clean(_joined(item), match[1]) for item in value))
        return (self.fill(template),)

    def clean(self, value: object, path: str) -> str:
        text = "" if value is None else str(value)
        for old, new in self.spec.replacements.items():
            text = text.replace(old, new)
        text = " ".join(text.split())
        if not text:
            raise EmptyFieldError(self.where, f"empty {path!r}")
        return text

    def label(self) -> str:
        raw = self.value(self.spec.label_column)
        if raw is None or raw_key(raw) == "":
            raise EmptyFieldError(self.where, f"empty {self.spec.label_column!r}")
        if raw_key(raw) not in self.spec.label_values:
            raise TaskError(
                f"{self.where}: {self.spec.label_column} is {raw!r}, which is no known label. "
                f"Known: {', '.join(self.spec.label_values)}. Mend the row, or add the value to "
                "'labels' in the task's catalogue entry (null leaves such rows out)."
            )
        text = self.spec.label_values[raw_key(raw)]
        if text is None:
            raise EmptyFieldError(self.where, f"left out: {self.spec.label_column} {raw_key(raw)}")
        return text

    def choices(self) -> tuple[str, ...]:
        if not self.spec.choices_list:
            return tuple(self.fill(template) for template in self.spec.choices)
        path = self.spec.choices_list.strip("{}")
        value = self.value(path)
        if isinstance(value, str) or not isinstance(value, Sequence) or len(value) < 2:
            raise TaskError(f"{self.where}: {path} must list two choices or more, got {value!r}.")
        return tuple(self.clean(item, path) for item in value)

    def gold(self, count: int) -> int:
        spec, path = self.spec, self.spec.gold_column
        raw = self.value(path)
        if raw is None or raw_key(raw) == "":
            raise EmptyFieldError(self.where, f"empty {path!r}")
        known: Mapping[str, int] = spec.gold_values or {str(i): i for i in range(count)}
        if spec.gold_among:
            known = {raw_key(value): i for i, value in enumerate(self.value(spec.gold_among))}
        index = known.get(raw_key(raw))
        if index is None or not 0 <= index < count:
            raise TaskError(
                f"{self.where}: {path} is {raw!r}, which names none of the {count} choices. "
                f"Known: {', '.join(known)}."
            )
        return index


def _joined(value: object) -> object:
    if isinstance(value, Sequence) and not isinstance(value, str):
        nested = any(isinstance(item, Sequence) and not isinstance(item, str) for item in value)
        if nested:
            return "; ".join(" | ".join(map(str, item)) for item in value)
        return ", ".join(map(str, value))
    return value
