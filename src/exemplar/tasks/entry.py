"""Checks one entry of a task catalogue; the format is described in `tasks/spec.py`.

Every refusal names the file, the task and the key, what was expected and what stands there.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from exemplar.errors import TaskError
from exemplar.tasks import metrics

KINDS = ("classification", "multiple_choice", "generation")
PLACEHOLDER = re.compile(r"\{([A-Za-z_][\w.]*)\}")

_KIND_KEYS = {
    "classification": {"labels", "label"},
    "multiple_choice": {"choices", "gold"},
    "generation": {"answer"},
}
_REQUIRED = {"category", "kind", "metric"}
_ROW_KEYS = {"query", "group", "replace", "max_words", "train_from", "hub"}
_COMMON = _REQUIRED | {"held_out", "description"} | _ROW_KEYS


def raw_key(value: object) -> str:
    """Return a raw label as text: the same for 1, 1.0 and "1", as file formats differ in that."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def parse(file: Path, name: object, values: object) -> dict[str, Any]:
    """Return the arguments of the entry's `TaskSpec`, or raise `TaskError`."""
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name):
        raise TaskError(
            f"{file}: {name!r} cannot name a task: use letters, digits, '_', '-' and '.'."
        )
    if not isinstance(values, dict):
        raise TaskError(f"{file}: task {name!r}: expected a mapping of keys, got {values!r}.")
    return _Entry(file, name, values).arguments()


@dataclass(frozen=True)
class _Entry:
    file: Path
    name: str
    values: dict[Any, Any]

    def arguments(self) -> dict[str, Any]:
        kind = self.one_of("kind", KINDS)
        self.check_keys(kind)
        labels = self.labels() if kind == "classification" else {}
        metric = self.one_of("metric", metrics.known())
        if metric == "acc_and_f1" and "yes" not in [str(text).lower() for text in labels.values()]:
            self.refuse("metric", "acc_and_f1 measures the label 'yes', which the task lacks.")
        return {
            "name": self.name,
            "category": self.typed("category", str, ""),
            "kind": kind,
            "metric": metric,
            "held_out": self.typed("held_out", bool, False),
            "description": self.typed("description", str, ""),
            "labels": tuple(dict.fromkeys(text for text in labels.values() if text is not None)),
            "label_values": labels,
            "wordings": self.wordings(),
            "label_column": self.typed("label", str, ""),
            **self.choices(self.values.get("choices", [])),
            **self.gold(),
            "answer_template": self.template("answer"),
            "group_column": self.typed("group", str, ""),
            "replacements": self.replacements(),
            "max_words": self.typed("max_words", int, 0),
            "train_from": self.typed("train_from", str, ""),
            "hub": self.hub(),
        }

    def refuse(self, key: object, why: str) -> NoReturn:
        raise TaskError(f"{self.file}: task {self.name!r}, key {key!r}: {why}")

    def check_keys(self, kind: str) -> None:
        known = _COMMON | _KIND_KEYS[kind]
        for key in self.values:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                hint = (
                    f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}."
                )
                self.refuse(key, f"a {kind} task has no such key; {hint}")
        required = set(_REQUIRED)
        if kind == "classification":
            required.add("labels")
        if "query" in self.values:
            required |= _KIND_KEYS[kind]
        for key in sorted(required - self.values.keys()):
            self.refuse(key, f"it is missing, and a {kind} task needs it.")
        if "query" not in self.values:
            for key in sorted(
                (_ROW_KEYS - {"train_from"} | _KIND_KEYS[kind] - {"labels"}) & self.values.keys()
            ):
                self.refuse(key, "it says how to read rows, so the key 'query' is needed too.")

    def typed(self, key: str, kind: type, default: Any) -> Any:
        value = self.values.get(key, default)
        # bool is an int to Python; an empty text says nothing, so it is refused like a wrong type
        wrong = type(value) is not kind or (key in self.values and value == "")
        if wrong or (kind is int and value < 0):
            self.refuse(key, f"expected a {kind.__name__} that says something, got {value!r}.")
        return value

    def wordings(self) -> tuple[str, ...]:
        given = self.values.get("query", [])
        if isinstance(given, str):
            given = [given]
        if not isinstance(given, list) or ("query" in self.values and not given):
            self.refuse("query", f"expected a template, or a list of templates, got {given!r}.")
        if len(set(map(str, given))) < len(given):
            self.refuse("query", "two of its wordings are equal.")
        if not all(given):
            self.refuse("query", f"expected texts that say something, got {given!r}.")
        return tuple(self.checked("query", text) for text in given)

    def template(self, key: str) -> str:
        return self.checked(key, self.typed(key, str, ""))

    def checked(self, key: str, text: object) -> str:
        if not isinstance(text, str):
            self.refuse(key, f"expected a template, got {text!r}.")
        around, found = PLACEHOLDER.subn("", text)
        if text and (not found or "{" in around or "}" in around):
            self.refuse(
                key, f"expected placeholders like {{column}} or {{column.key}}, got {text!r}."
            )
        return text

    def one_of(self, key: str, known: tuple[str, ...]) -> str:
        value = self.values.get(key)
        if value not in known:
            self.refuse(key, f"expected one of {', '.join(known)}, got {value!r}.")
        return str(value)

    def labels(self) -> dict[str, str | None]:
        given = self.values["labels"]
        if isinstance(given, list):
            given = {text: text for text in given} if len(set(map(str, given))) == len(given) else 0
        if not isinstance(given, dict):
            self.refuse("labels", "expected different texts, or a map from raw value to text.")
        for text in given.values():
            if text is not None and (not isinstance(text, str) or not text.strip()):
                self.refuse(
                    "labels",
                    f"{text!r} is no label text. Put quotes around words that YAML reads as "
                    "something else: yes, no, true, null, numbers.",
                )
        if len({text for text in given.values() if text is not None}) < 2:
            self.refuse("labels", f"expected two different labels or more, got {given!r}.")
        return {raw_key(raw): text for raw, text in given.items()}

    def choices(self, given: object) -> dict[str, Any]:
        if isinstance(given, str):
            if not PLACEHOLDER.fullmatch(given):
                self.refuse("choices", f"expected one placeholder or a list, got {given!r}.")
            return {"choices_list": given}
        if not isinstance(given, list) or not all(isinstance(text, str) for text in given):
            self.refuse("choices", f"expected one placeholder or a list of texts, got {given!r}.")
        if "choices" in self.values and len(given) < 2:
            self.refuse("choices", "expected two templates or more.")
        return {"choices": tuple(given)}

    def gold(self) -> dict[str, Any]:
        given = self.values.get("gold", "")
        if isinstance(given, str):
            return {"gold_column": given}
        if not isinstance(given, dict) or given.keys() not in (
            {"column", "among"},
            {"column", "values"},
        ):
            self.refuse("gold", "expected a column, or {column, among}, or {column, values}.")
        values = given.get("values", {})
        if not isinstance(values, dict) or not all(type(i) is int for i in values.values()):
            self.refuse("gold", f"values must map raw values to 0-based indices, got {values!r}.")
        return {
            "gold_column": str(given["column"]),
            "gold_among": str(given.get("among", "")),
            "gold_values": {raw_key(raw): index for raw, index in values.items()},
        }

    def hub(self) -> dict[str, str]:
        given = self.typed("hub", dict, {})
        known = ("id", "config", "revision", "train", "test")
        wrong = [key for key in given if key not in known or not isinstance(given[key], str)]
        if wrong or (given and "id" not in given):
            self.refuse(
                "hub", f"expected texts under id (needed), {', '.join(known[1:])}; got {given!r}."
            )
        return dict(given)

    def replacements(self) -> dict[str, str]:
        given = self.typed("replace", dict, {})
        if not all(isinstance(text, str) for pair in given.items() for text in pair):
            self.refuse("replace", f"expected a map from text to text, got {given!r}.")
        return dict(given)
