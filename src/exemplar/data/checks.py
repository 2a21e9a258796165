"""The rules that each record keeps, checked whenever one is written or read."""

from __future__ import annotations

import math
from collections.abc import Sequence

from exemplar.errors import DataError
from exemplar.records import Candidates, Example, LlmScores, Outcome, Rewards

_SCORES = {
    Candidates: "similarities",
    LlmScores: "llm_logprobs",
    Rewards: "rewards",
}


def check_record(record: Example | Candidates | LlmScores | Rewards | Outcome) -> None:
    """Raise `DataError` where a record breaks its own rules (see `records.py`)."""
    if isinstance(record, Example):
        _check_example(record)
    elif isinstance(record, Outcome):
        if not (math.isfinite(record.score) and 0 <= record.score <= 100):
            raise DataError(
                f"outcome {record.example_id!r}: score {record.score} is not within 0 to 100."
            )
    else:
        where = f"{type(record).__name__} of query {record.query_id!r}"
        name = _SCORES[type(record)]
        _check_scores(where, record.candidate_ids, name, getattr(record, name))
        if isinstance(record, LlmScores) and len(record.reasons) != len(record.candidate_ids):
            raise DataError(f"{where}: reasons and candidates differ in number.")


def _check_example(example: Example) -> None:
    def refuse(why: str) -> None:
        raise DataError(f"example {example.example_id!r} of task {example.task!r}: {why}")

    if not (example.example_id and example.task):
        refuse("example_id and task must not be empty.")
    if not example.query.strip():
        refuse("the query is empty.")
    if not example.answers or not example.answers[0].strip():
        refuse("it needs at least one answer that is not empty.")
    if example.choices:
        if example.gold is None or not 0 <= example.gold < len(example.choices):
            refuse(f"gold must index its {len(example.choices)} choices, got {example.gold}.")
        elif example.answers[0] != example.choices[example.gold]:
            refuse("answers[0] must be the text of the gold choice.")
    elif example.gold is not None:
        refuse("gold is set but there are no choices.")


def _check_scores(where: str, ids: Sequence[str], name: str, scores: Sequence[float]) -> None:
    if len(ids) != len(scores):
        raise DataError(f"{where}: {len(ids)} candidates but {len(scores)} {name}.")
    if len(set(ids)) != len(ids):
        raise DataError(f"{where}: a candidate occurs twice.")
    for candidate_id, score in zip(ids, scores, strict=True):
        if not math.isfinite(score):
            raise DataError(
                f"{where}: {name} of candidate {candidate_id!r} is {score}, not a finite number."
            )
