"""The task metrics against the paper's figures and against plain computations."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exemplar.errors import TaskError
from exemplar.tasks import metrics

words = st.lists(st.sampled_from(["a", "the", "cat", "Cat", "sat", "mat.", "."]), max_size=8)
texts = words.map(" ".join)


def longest_common(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    """Length of the longest common subsequence, by its recursive definition."""
    if not a or not b:
        return 0
    if a[0] == b[0]:
        return 1 + longest_common(a[1:], b[1:])
    return max(longest_common(a[1:], b), longest_common(a, b[1:]))


def test_figures_equal_those_of_the_papers_code() -> None:
    """Else our results could not be held against the paper's tables."""
    folder = os.environ.get("EXEMPLAR_PARITY")
    if not folder:
        pytest.skip("EXEMPLAR_PARITY names no folder with reference.json")
    for case in json.loads((Path(folder) / "reference.json").read_text())["metrics"]:
        found = metrics.compute(case["metric"], case["preds"], case["labels"])
        assert found == pytest.approx(case["result"], abs=1e-6)


def test_accuracy_ignores_case_and_outer_blanks_and_takes_any_accepted_answer() -> None:
    """A model that writes " Positive" instead of "positive" is not wrong."""
    predictions = [" Positive", "negative", "maybe", "no"]
    references = ["positive", "positive", ["perhaps", "Maybe"], ["no"]]
    assert metrics.compute("accuracy", predictions, references) == {"accuracy": 75.0}
    assert metrics.score_each("accuracy", predictions, references) == [100.0, 0.0, 100.0, 100.0]


def test_f1_is_that_of_the_label_yes() -> None:
    """Macro or micro averages are other figures than the paper's (MultiRC)."""
    predictions = ["yes", "Yes", "no", "no", "yes"]
    references = ["yes", "no", "yes", "no", "Yes"]
    precision, recall = 2 / 3, 2 / 3
    found = metrics.compute("acc_and_f1", predictions, references)
    f1 = 100 * 2 * precision * recall / (precision + recall)
    assert found == pytest.approx({"acc": 60, "f1": f1, "acc_and_f1": (60 + f1) / 2})
    assert metrics.primary("acc_and_f1") == "f1"
    assert metrics.score_each("acc_and_f1", predictions, references) == [100, 0, 0, 100, 100]


def test_f1_without_any_yes_is_zero_not_a_crash() -> None:
    """A small test draw may hold no positive example."""
    assert metrics.compute("acc_and_f1", ["no"], ["no"])["f1"] == 0.0


@pytest.mark.parametrize(
    ("prediction", "accepted", "em", "f1"),
    [
        ("The Normans!", ["normans"], 1, 1),
        ("in 911", ["911"], 0, 2 / 3),
        ("the river Seine", ["Epte", "Seine"], 0, 2 / 3),
        ("", ["Rollo"], 0, 0),
        ("the", ["a"], 1, 0),  # both are empty once normalised; no common word
        ("an apple a day", "apple day", 1, 1),
    ],
)
def test_squad_normalises_and_takes_the_best_reference(
    prediction: str, accepted: str | list[str], em: float, f1: float
) -> None:
    """Articles, case and punctuation are no errors, and one of several answers is enough."""
    found = metrics.compute("squad", [prediction], [accepted])
    assert found == pytest.approx({"em": 100 * em, "f1": 100 * f1})


def test_rouge_counts_each_word_once_and_keeps_case() -> None:
    """Libraries that count repetitions or lower-case give other figures than the paper's."""
    found = metrics.compute("rouge", ["the cat the cat sat"], ["The cat sat"])
    # words {the, cat, sat} and {The, cat, sat}
    # bigrams {the cat, cat the, cat sat} and {The cat, cat sat}
    assert found["r1"] == pytest.approx(100 * 2 / 3, abs=1e-5)
    assert found["r2"] == pytest.approx(100 * 2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2), abs=1e-5)
    assert found["rl"] == pytest.approx(100 * 2 / 3, abs=1e-5)


def test_rouge_l_respects_order() -> None:
    """ROUGE-L that ignored order would equal ROUGE-1 and measure nothing more."""
    found = metrics.compute("rouge", ["c b a"], ["a b c"])
    assert found["r1"] == pytest.approx(100, abs=1e-5)
    assert found["rl"] == pytest.approx(100 / 3, abs=1e-5)


def test_a_full_stop_at_the_end_counts_as_a_word() -> None:
    """A quirk of the paper's figures: dropping it shifts every data-to-text score by points."""
    with_stop = metrics.compute("rouge", ["a cat."], ["a dog."])["r1"]
    without = metrics.compute("rouge", ["a cat"], ["a dog"])["r1"]
    assert with_stop == pytest.approx(100 * 2 / 3, abs=1e-5)
    assert without == pytest.approx(50, abs=1e-5)


@settings(max_examples=200, deadline=None)
@given(
    a=st.permutations("abcdef").map(lambda p: p[:4]),
    b=st.permutations("abcdef").map(lambda p: p[:5]),
)
def test_rouge_l_equals_the_plain_recursion_on_single_sentences(a: list[str], b: list[str]) -> None:
    """The table-driven subsequence must be a longest one."""
    common = longest_common(tuple(a), tuple(b))
    expected = 2 * common / (len(a) + len(b))
    found = metrics.compute("rouge", [" ".join(a)], [" ".join(b)])["rl"]
    assert found == pytest.approx(100 * expected, abs=1e-4)


@settings(max_examples=100, deadline=None)
@given(metric=st.sampled_from(metrics.known()), pairs=st.lists(st.tuples(texts, texts), min_size=1))
def test_figures_stay_in_range_and_score_each_averages_to_them(
    metric: str, pairs: list[tuple[str, str]]
) -> None:
    """The gate works on single scores: their mean must be the reported figure."""
    predictions, references = zip(*pairs, strict=True)
    figures = metrics.compute(metric, predictions, references)
    each = metrics.score_each(metric, predictions, references)
    name = "acc" if metric == "acc_and_f1" else metrics.primary(metric)
    assert all(0 <= figure <= 100 + 1e-9 for figure in [*figures.values(), *each])
    assert sum(each) / len(each) == pytest.approx(figures[name])


def test_a_perfect_generation_scores_one_hundred_against_its_best_reference() -> None:
    """DART has several references a row; the first need not be the nearest."""
    found = metrics.compute("rouge", ["a b c"], [["x y", "a b c"]])
    assert found == pytest.approx({"r1": 100, "r2": 100, "rl": 100}, abs=1e-5)


def test_an_empty_prediction_scores_zero() -> None:
    """An LM that answers nothing must not crash a long evaluation."""
    assert metrics.compute("rouge", [""], ["a b"]) == {"r1": 0.0, "r2": 0.0, "rl": 0.0}


def test_an_unknown_metric_is_refused_with_the_known_ones() -> None:
    """A typing error in the catalogue must not end in a KeyError."""
    with pytest.raises(TaskError, match=r"'bleu'.*accuracy, acc_and_f1, squad, rouge"):
        metrics.compute("bleu", ["a"], ["a"])
    with pytest.raises(TaskError, match="bleu"):
        metrics.primary("bleu")


@pytest.mark.parametrize("metric", metrics.known())
def test_lists_that_do_not_pair_up_are_refused(metric: str) -> None:
    """A shorter list would be scored against the wrong examples."""
    with pytest.raises(TaskError, match="1 predictions for 2 references"):
        metrics.compute(metric, ["a"], ["a", "b"])
    with pytest.raises(TaskError, match="no example"):
        metrics.score_each(metric, [], [])
    with pytest.raises(TaskError, match="no reference"):
        metrics.compute(metric, ["a"], [[]])
