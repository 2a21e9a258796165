"""The task catalogue: strict entries, and rows that become examples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from exemplar.data.checks import check_record
from exemplar.errors import TaskError
from exemplar.tasks import metrics
from exemplar.tasks.rendering import EmptyFieldError, render
from exemplar.tasks.spec import TaskSpec, load_catalog, select

MOOD: dict[str, Any] = {
    "category": "mine",
    "kind": "classification",
    "metric": "accuracy",
    "query": "Note: {text}",
    "label": "mood",
    "labels": {0: "sad", 1: "glad", -1: None},
}
QUIZ: dict[str, Any] = {
    "category": "mine",
    "kind": "multiple_choice",
    "metric": "accuracy",
    "query": "{question}",
    "choices": ["{first}", "{second}"],
    "gold": "right",
}
TITLE: dict[str, Any] = {
    "category": "mine",
    "kind": "generation",
    "metric": "rouge",
    "query": "{body}\nTitle:",
    "answer": "{titles}",
}


def written(folder: Path, entries: object) -> Path:
    path = folder / "own.yaml"
    text = entries if isinstance(entries, str) else yaml.safe_dump(entries, sort_keys=False)
    path.write_text(text, encoding="utf-8")
    return path


def spec(folder: Path, entry: Mapping[str, Any], **changes: Any) -> TaskSpec:
    return load_catalog(written(folder, {"own": {**entry, **changes}}))["own"]


def test_the_built_in_catalogue_covers_the_papers_tasks() -> None:
    """A task that falls out of the catalogue falls out of the comparison with the paper."""
    from_rows = {name: task for name, task in load_catalog().items() if task.from_rows}
    assert len(from_rows) == 30
    assert {name for name, task in from_rows.items() if task.held_out} == {
        "qnli",
        "piqa",
        "yelp",
        "wsc273",
    }
    counts: dict[str, int] = {}
    for task in from_rows.values():
        counts[task.category] = counts.get(task.category, 0) + 1
    assert counts == {
        "closed_book": 3,
        "commonsense": 3,
        "coreference": 3,
        "inference": 5,
        "paraphrase": 3,
        "reading": 4,
        "sentiment": 3,
        "data_to_text": 3,
        "summarization": 3,
    }


def test_every_built_in_entry_is_whole() -> None:
    """An entry that loads but lacks its labels or a description fails hours later."""
    for name, task in load_catalog().items():
        assert task.name == name
        assert task.description
        assert task.metric in metrics.known()
        assert (len(task.labels) >= 2) == (task.kind == "classification")


def test_tests_that_share_training_rows_say_so() -> None:
    """MNLI's two tests share one training set; WSC273 has none and takes Winogrande's."""
    catalog = load_catalog()
    assert catalog["mnli_m"].train_from == catalog["mnli_mm"].train_from == "mnli"
    assert catalog["mnli_m"].train_spec is not None
    assert catalog["mnli_m"].train_spec.wordings == catalog["mnli_m"].wordings
    assert catalog["wsc273"].train_spec == catalog["winogrande"]


@pytest.mark.parametrize(
    ("entry", "changes", "key", "says"),
    [
        (MOOD, {"metrics": "accuracy"}, "metrics", "did you mean 'metric'"),
        (MOOD, {"gold": "x"}, "gold", "classification task has no such key"),
        (MOOD, {"kind": "ranking"}, "kind", "classification, multiple_choice, generation"),
        (MOOD, {"metric": "bleu"}, "metric", "accuracy"),
        (MOOD, {"metric": "acc_and_f1"}, "metric", "yes"),
        (MOOD, {"held_out": "no"}, "held_out", "bool"),
        (MOOD, {"max_words": -1}, "max_words", "-1"),
        (MOOD, {"max_words": True}, "max_words", "int"),
        (MOOD, {"category": ""}, "category", "says something"),
        (MOOD, {"labels": {0: True, 1: "glad"}}, "labels", "quotes"),
        (MOOD, {"labels": ["glad", "glad"]}, "labels", "different"),
        (MOOD, {"labels": {0: "glad", 1: None}}, "labels", "two different"),
        (MOOD, {"replace": {"a": 1}}, "replace", "text to text"),
        (MOOD, {"query": "Note: text"}, "query", "{column}"),
        (MOOD, {"query": "Note: {text} { mood }"}, "query", "{column}"),
        (TITLE, {"answer": "titles"}, "answer", "{column}"),
        (QUIZ, {"choices": "{a} {b}"}, "choices", "one placeholder"),
        (QUIZ, {"choices": ["{a}"]}, "choices", "two"),
        (QUIZ, {"choices": [1, 2]}, "choices", "texts"),
        (QUIZ, {"gold": {"column": "a"}}, "gold", "among"),
        (QUIZ, {"gold": {"column": "a", "values": {"A": "0"}}}, "gold", "indices"),
    ],
)
def test_a_wrong_entry_is_refused_by_file_task_and_key(
    tmp_path: Path, entry: Mapping[str, Any], changes: Mapping[str, Any], key: str, says: str
) -> None:
    """A misread entry would train on wrong labels without a word."""
    with pytest.raises(TaskError) as caught:
        spec(tmp_path, entry, **changes)
    message = str(caught.value)
    assert "own.yaml" in message
    assert f"task 'own', key '{key}'" in message
    assert says in message


@pytest.mark.parametrize("key", ["category", "kind", "metric", "labels", "label"])
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    """A default for any of these would be a guess."""
    entry = {name: value for name, value in MOOD.items() if name != key}
    with pytest.raises(TaskError, match=f"key '{key}'"):
        load_catalog(written(tmp_path, {"own": entry}))


def test_a_row_key_without_a_query_is_refused(tmp_path: Path) -> None:
    """Else the entry would look complete, and no row could ever be rendered."""
    entry = {name: value for name, value in MOOD.items() if name != "query"}
    with pytest.raises(TaskError, match=r"key 'label'.*query"):
        load_catalog(written(tmp_path, {"own": entry}))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: {b: 1}\na: {b: 2}", "stands twice"),
        ("own: {category: x, category: y}", "stands twice"),
        ("- a list", "mapping from task names"),
        ("", "mapping from task names"),
        ("a: {[1]: 2}", "not a readable task catalogue"),
        ("a: [1", "not a readable task catalogue"),
        ("own: 3", "mapping of keys"),
        ("1: {a: 2}", "cannot name a task"),
        ("../up: {a: 2}", "cannot name a task"),
        ("sst2: {category: x}", "already defined"),
    ],
)
def test_a_catalogue_that_is_no_catalogue_is_refused(tmp_path: Path, text: str, says: str) -> None:
    """Plain YAML keeps the last of two equal keys silently, and a task would be another one."""
    with pytest.raises(TaskError, match=says):
        load_catalog(written(tmp_path, text))


def test_a_missing_catalogue_is_named(tmp_path: Path) -> None:
    """The path is what the user has to mend."""
    with pytest.raises(TaskError, match=r"nowhere\.yaml does not exist"):
        load_catalog(tmp_path / "nowhere.yaml")


def test_select_keeps_the_order_asked_for_and_explains_a_misspelt_name() -> None:
    """The order of the tasks is the order of files and reports."""
    catalog = load_catalog()
    assert [task.name for task in select(catalog, ["snli", "sst2"])] == ["snli", "sst2"]
    with pytest.raises(TaskError, match=r"'sst'.*Did you mean.*sst2"):
        select(catalog, ["sst"])
    with pytest.raises(TaskError, match="twice"):
        select(catalog, ["sst2", "sst2"])
    with pytest.raises(TaskError, match="no task is named"):
        select(catalog, [])


@pytest.mark.parametrize("raw", [1, 1.0, "1", " 1 "])
def test_a_label_means_the_same_in_every_file_format(tmp_path: Path, raw: object) -> None:
    """CSV has texts where Parquet has integers, and a data frame's export has 1.0."""
    example = render(spec(tmp_path, MOOD), {"text": "sun", "mood": raw}, "own/train/0")
    assert (example.query, example.answers) == ("Note: sun", ("glad",))
    check_record(example)


def test_labels_may_be_a_plain_list(tmp_path: Path) -> None:
    """Where the data already holds the label texts, no map is needed."""
    task = spec(tmp_path, MOOD, labels=["sad", "glad"])
    assert task.labels == ("sad", "glad")
    assert render(task, {"text": "rain", "mood": "sad"}, "x").answer == "sad"


def test_an_unknown_label_names_row_field_value_and_the_known_ones(tmp_path: Path) -> None:
    """The user must find the row, and see whether the catalogue or the data is wrong."""
    with pytest.raises(TaskError, match=r"'own/train/7'.*mood is 5.*Known: 0, 1, -1"):
        render(spec(tmp_path, MOOD), {"text": "fog", "mood": 5}, "own/train/7")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "  ", "mood": 1}, "empty 'text'"),
        ({"text": None, "mood": 1}, "empty 'text'"),
        ({"text": "fog", "mood": None}, "empty 'mood'"),
        ({"text": "fog", "mood": -1}, "left out: mood -1"),
    ],
)
def test_a_row_with_nothing_in_it_says_which_field(
    tmp_path: Path, row: dict[str, Any], reason: str
) -> None:
    """Such rows are left out and counted by reason; a wrong row stops the run."""
    with pytest.raises(EmptyFieldError) as caught:
        render(spec(tmp_path, MOOD), row, "own/train/7")
    assert caught.value.reason == reason


def test_a_missing_column_names_it_and_those_there_are(tmp_path: Path) -> None:
    """A renamed column is the commonest way in which a data set does not fit."""
    with pytest.raises(TaskError, match=r"'own/train/7'.*no 'text'.*sentence, mood"):
        render(spec(tmp_path, MOOD), {"sentence": "fog", "mood": 1}, "own/train/7")


@pytest.mark.parametrize(
    ("gold", "row"),
    [
        ("right", {"right": 1}),
        ("right", {"right": "1"}),
        ({"column": "right", "values": {"1": 0, "2": 1}}, {"right": "2"}),
        ({"column": "key", "among": "names.label"}, {"key": "B", "names": {"label": ["A", "B"]}}),
        ({"column": "key", "among": "names.label"}, {"key": "2", "names": {"label": ["1", "2"]}}),
    ],
)
def test_gold_may_be_an_index_a_letter_or_a_mapped_value(
    tmp_path: Path, gold: object, row: dict[str, Any]
) -> None:
    """The published sets mark the right choice in all these ways."""
    task = spec(tmp_path, QUIZ, gold=gold)
    example = render(task, {"question": "Q", "first": "no", "second": "yes", **row}, "own/0")
    assert (example.choices, example.gold, example.answers) == (("no", "yes"), 1, ("yes",))
    check_record(example)


@pytest.mark.parametrize("raw", [2, -1, "C"])
def test_a_gold_that_names_no_choice_is_refused(tmp_path: Path, raw: object) -> None:
    """Index -1 would silently take the last choice."""
    row = {"question": "Q", "first": "no", "second": "yes", "right": raw}
    with pytest.raises(TaskError, match="none of the 2 choices"):
        render(spec(tmp_path, QUIZ), row, "own/0")


def test_choices_may_come_as_one_list(tmp_path: Path) -> None:
    """ARC and OpenBookQA hold them under a key of a column."""
    task = spec(tmp_path, QUIZ, choices="{choices.text}")
    row = {"question": "Q", "choices": {"text": ["a", "b", "c"]}, "right": 2}
    assert render(task, row, "own/0").choices == ("a", "b", "c")
    with pytest.raises(TaskError, match="two choices or more"):
        render(task, {**row, "choices": {"text": "abc"}}, "own/0")


def test_a_list_of_answers_keeps_all_of_them_once(tmp_path: Path) -> None:
    """Exact match takes the best of them; the first is shown and scored."""
    task = spec(tmp_path, TITLE)
    example = render(task, {"body": "b", "titles": ["One", "Two", "One"]}, "own/0")
    assert example.answers == ("One", "Two")
    assert render(task, {"body": "b", "titles": "One"}, "own/0").answers == ("One",)
    with pytest.raises(EmptyFieldError):
        render(task, {"body": "b", "titles": []}, "own/0")


def test_values_are_cleaned_joined_replaced_and_cut(tmp_path: Path) -> None:
    """A blank line inside a value would look like the border of a demonstration."""
    task = spec(tmp_path, TITLE, max_words=3, replace={"&amp;": "&"})
    row = {"body": "one\n\n two &amp;  three four", "titles": "a title of five words"}
    example = render(task, row, "own/0")
    assert example.query == "one two & ...\nTitle:"
    assert example.answer == "a title of five words"  # an answer is never cut
    facts = {"body": [["a", "b"], ["c", "d"]], "titles": ["x"]}
    assert render(spec(tmp_path, TITLE), facts, "own/0").query == "a | b; c | d\nTitle:"
    assert render(spec(tmp_path, TITLE), {**facts, "body": ["a", "b"]}, "o").query.startswith(
        "a, b"
    )


def test_braces_in_a_value_are_plain_text(tmp_path: Path) -> None:
    """str.format would read them as fields of the row."""
    assert render(spec(tmp_path, MOOD), {"text": "{mood} {x}", "mood": 1}, "o").query == (
        "Note: {mood} {x}"
    )


def test_examples_of_one_passage_share_a_short_group(tmp_path: Path) -> None:
    """The statistics resample passages, not their questions."""
    task = spec(tmp_path, TITLE, group="body")
    groups = [
        render(task, {"body": body, "titles": "t"}, "o").group
        for body in ("long " * 500, "long " * 500, "other")
    ]
    assert groups[0] == groups[1] != groups[2]
    assert len(groups[0]) == 16


def test_a_task_without_a_query_cannot_render() -> None:
    """The sample set comes as examples; a folder of rows for it is a misunderstanding."""
    ready = next(task for task in load_catalog().values() if not task.from_rows)
    with pytest.raises(TaskError, match="no 'query'"):
        render(ready, {}, "x/0")
