"""The paper's task metrics (table 8), figure for figure as its code computes them.

All figures run from 0 to 100. A reference is a text, or a list of accepted texts (the best counts).

- accuracy: equal after lower-casing and stripping.
- acc_and_f1: accuracy, F1 of the positive label "Yes", and the mean of the two.
- squad: exact match (em) and token F1 after SQuAD's normalisation (lower case, without
  punctuation, articles and spare blanks).
- rouge: F-measures of ROUGE-1, -2 and -L over *sets* of words, case kept. The libraries in good
  keeping (e.g. rouge-score) count repeated words and stem or lower-case them, which gives other
  figures than the paper's; hence the small definition here. See `_words` and `_rouge_l`.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from exemplar.errors import TaskError

Reference = str | Sequence[str]

_POSITIVE = "yes"
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_EPSILON = 1e-8  # in the denominator of the F-measure, as in the paper's ROUGE


class _Metric(NamedTuple):
    """`figures`: one example -> its figures (0 to 1), averaged by `compute`."""

    primary: str
    per_example: str
    figures: Callable[[str, Sequence[str]], dict[str, float]]


def known() -> tuple[str, ...]:
    """Return the names of the metrics."""
    return tuple(_METRICS)


def primary(metric: str) -> str:
    """Return the name of the figure that stands for the metric in averages over tasks."""
    return _lookup(metric).primary


def compute(
    metric: str, predictions: Sequence[str], references: Sequence[Reference]
) -> dict[str, float]:
    """Return the metric's figures over all examples, 0 to 100, means over examples but for F1.

    Raises `TaskError` on an unknown metric, on no example and on lists of different lengths.
    """
    rows = _figures(metric, predictions, references)
    means = {name: 100 * sum(row[name] for row in rows) / len(rows) for name in rows[0]}
    if metric == "acc_and_f1":
        f1 = 100 * _positive_f1(predictions, references)
        return {"acc": means["acc"], "f1": f1, "acc_and_f1": (means["acc"] + f1) / 2}
    return means


def score_each(
    metric: str, predictions: Sequence[str], references: Sequence[Reference]
) -> list[float]:
    """Return each example's own score, 0 to 100: its primary figure.

    For acc_and_f1 it is right or wrong: F1 is a figure of a whole set. Raises as `compute` does.
    """
    name = _lookup(metric).per_example
    return [100 * row[name] for row in _figures(metric, predictions, references)]


def _lookup(metric: str) -> _Metric:
    if metric not in _METRICS:
        raise TaskError(f"there is no metric {metric!r}. Known: {', '.join(_METRICS)}.")
    return _METRICS[metric]


def _figures(
    metric: str, predictions: Sequence[str], references: Sequence[Reference]
) -> list[dict[str, float]]:
    figures = _lookup(metric).figures
    if len(predictions) != len(references):
        raise TaskError(
            f"{metric}: {len(predictions)} predictions for {len(references)} references; "
            "each example needs one of each."
        )
    if not predictions:
        raise TaskError(f"{metric}: there is no example to score.")
    return [
        figures(prediction, _accepted(reference))
        for prediction, reference in zip(predictions, references, strict=True)
    ]


def _accepted(reference: Reference) -> Sequence[str]:
    accepted = [reference] if isinstance(reference, str) else reference
    if not accepted:
        raise TaskError("an example has no reference. Give at least one accepted answer.")
    return accepted


def _plain(text: str) -> str:
    return text.lower().strip()


def _accuracy(prediction: str, accepted: Sequence[str]) -> dict[str, float]:
    return {"accuracy": float(_plain(prediction) in map(_plain, accepted))}


def _right(prediction: str, accepted: Sequence[str]) -> dict[str, float]:
    return {"acc": _accuracy(prediction, accepted)["accuracy"]}


def _positive_f1(predictions: Sequence[str], references: Sequence[Reference]) -> float:
    said = [_plain(prediction) == _POSITIVE for prediction in predictions]
    true = [_plain(_accepted(reference)[0]) == _POSITIVE for reference in references]
    both = sum(a and b for a, b in zip(said, true, strict=True))
    return 2 * both / (sum(said) + sum(true)) if any(said) or any(true) else 0.0


def _squad_text(text: str) -> str:
    # punctuation goes first: "the-end" becomes "theend", whose "the" is then no article
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _squad(prediction: str, accepted: Sequence[str]) -> dict[str, float]:
    said = _squad_text(prediction)
    right = [_squad_text(text) for text in accepted]
    return {"em": float(said in right), "f1": max(_token_f1(said, text) for text in right)}


def _token_f1(said: str, right: str) -> float:
    words, true = said.split(), right.split()
    common = (Counter(words) & Counter(true)).total()
    return 2 * common / (len(words) + len(true)) if common else 0.0


def _rouge(prediction: str, accepted: Sequence[str]) -> dict[str, float]:
    said = _sentences(prediction)
    scored = []
    for text in accepted:
        right = _sentences(text)
        scored.append(
            {"r1": _rouge_n(said, right, 1), "r2": _rouge_n(said, right, 2)}
            | {"rl": _rouge_l(said, right)}
        )
    return max(scored, key=lambda figures: figures["rl"])


def _sentences(text: str) -> list[list[str]]:
    """Split at full stops, then at blanks.

    The text ends in a line break, so that a full stop at the very end leaves a last sentence with
    one empty word: ending in a full stop, or being empty, counts as a word of its own.
    """
    if "\n" not in text:
        text += "\n"
    pieces = [" ".join(piece.split()) for piece in text.split(".") if piece]
    return [piece.split(" ") for piece in pieces]


def _rouge_n(said: list[list[str]], right: list[list[str]], n: int) -> float:
    """F-measure over the sets of n-grams, which run across sentences."""

    def ngrams(sentences: list[list[str]]) -> set[tuple[str, ...]]:
        words = [word for sentence in sentences for word in sentence]
        return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}

    a, b = ngrams(said), ngrams(right)
    return _f_measure(len(a & b), len(a), len(b))


def _rouge_l(said: list[list[str]], right: list[list[str]]) -> float:
    """F-measure over the words on a longest common subsequence of any pair of sentences."""
    common = {word for a in said for b in right for word in _common_subsequence(b, a)}
    words = [{word for sentence in side for word in sentence} for side in (said, right)]
    return _f_measure(len(common), len(words[0]), len(words[1]))


def _common_subsequence(x: list[str], y: list[str]) -> list[str]:
    """Return a longest common subsequence; of several, the one that keeps more of x's end."""
    lengths = [[0] * (len(y) + 1) for _ in range(len(x) + 1)]
    for i, a in enumerate(x, 1):
        for j, b in enumerate(y, 1):
            same = lengths[i - 1][j - 1] + 1
            lengths[i][j] = same if a == b else max(lengths[i - 1][j], lengths[i][j - 1])
    common: list[str] = []
    i, j = len(x), len(y)
    while i and j:
        if x[i - 1] == y[j - 1]:
            common.append(x[i - 1])
            i, j = i - 1, j - 1
        elif lengths[i - 1][j] > lengths[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return common[::-1]


def _f_measure(common: int, said: int, right: int) -> float:
    precision = common / said if said else 0.0
    recall = common / right if right else 0.0
    return 2 * precision * recall / (precision + recall + _EPSILON)


_METRICS = {
    "accuracy": _Metric("accuracy", "accuracy", _accuracy),
    "acc_and_f1": _Metric("f1", "acc", _right),
    "squad": _Metric("em", "em", _squad),
    "rouge": _Metric("rl", "rl", _rouge),
}
