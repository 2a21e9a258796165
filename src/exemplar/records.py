"""The records that pass between steps. Each is one row of a Parquet file (see `data/io.py`).

Ids are strings. Lists of one record run in parallel: `llm_logprobs[i]` belongs to
`candidate_ids[i]`. What may not be used carries a reason; no score is ever a sentinel.
"""

from __future__ import annotations

from dataclasses import dataclass

OTHER_TASK = "other_task"
"""Reason: the candidate belongs to another task than the query."""

OTHER_LABEL = "other_label"
"""Reason: classification, and the candidate carries another label than the query."""


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled example, in the pool, a training query or a test query.

    `answers` holds every accepted answer, the first being the one that is shown and scored.
    `choices` is empty unless the task is multiple choice; then `gold` is the index of the right
    one and `answers[0] == choices[gold]`. `group` names the passage that examples share ("" for
    none): the unit of resampling in the statistics.
    """

    example_id: str
    task: str
    query: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()
    gold: int | None = None
    group: str = ""

    @property
    def answer(self) -> str:
        """The answer that is shown in a demonstration and scored by the LM."""
        return self.answers[0]

    @property
    def text(self) -> str:
        """The example as a demonstration and as a document to retrieve (paper, section 3.1)."""
        return f"{self.query}\n{self.answer}"


@dataclass(frozen=True, slots=True)
class Candidates:
    """Pool examples proposed for a query, most similar first; demonstrations look the same.

    Demonstrations stand in the order of the prompt from its end: most similar first too, unless
    `search.selection.order` says otherwise.
    """

    query_id: str
    candidate_ids: tuple[str, ...]
    similarities: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class LlmScores:
    """LM scores of a query's candidates.

    `llm_logprobs`: mean log-probability of the answer's tokens, nats per token, higher is better.
    `reasons[i]` says why candidate i cannot be a positive ("" where it can: eligible).
    """

    query_id: str
    candidate_ids: tuple[str, ...]
    llm_logprobs: tuple[float, ...]
    reasons: tuple[str, ...]

    @property
    def eligible(self) -> tuple[bool, ...]:
        """Which candidates may be a positive."""
        return tuple(not reason for reason in self.reasons)


@dataclass(frozen=True, slots=True)
class Rewards:
    """Reward-model scores (logits, higher is better) of a query's candidates."""

    query_id: str
    candidate_ids: tuple[str, ...]
    rewards: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the LM answered to one test example, and how right that was.

    `score`: the task's metric on this example alone, 0 to 100. `demonstration_ids`: those that
    were really in the prompt, the last one first. `num_dropped`: how many did not fit the budget.
    """

    example_id: str
    task: str
    group: str
    prediction: str
    score: float
    demonstration_ids: tuple[str, ...]
    num_dropped: int
