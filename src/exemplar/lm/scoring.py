"""Scoring candidates by the LM (paper, section 3.2): how likely does each make the right answer?

The prompt of a pair is the candidate, a blank line, the query and a newline; the score is the mean
log-probability of the query's first answer. Which of the proposed candidates are scored is drawn by
a generator of the query's own, so that shards and reruns score the same pairs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from exemplar.errors import DataError, PromptError
from exemplar.lm.base import LanguageModel
from exemplar.prompts import assemble
from exemplar.records import OTHER_LABEL, OTHER_TASK, Candidates, Example, LlmScores
from exemplar.seeding import rng


def draw_candidates(
    candidates: Sequence[Candidates], *, num_candidates: int, seed: int, number: int
) -> list[Candidates]:
    """Draw `num_candidates` of each query's candidates for round `number`, kept in their order."""
    drawn = []
    for item in candidates:
        size = len(item.candidate_ids)
        generator = rng(seed, "llm_scoring", number, item.query_id)
        places = sorted(generator.sample(range(size), min(num_candidates, size)))
        drawn.append(at(item, places))
    return drawn


def at(item: Candidates, places: Sequence[int]) -> Candidates:
    """Return the candidates at these places alone."""
    return Candidates(
        item.query_id,
        tuple(item.candidate_ids[place] for place in places),
        tuple(item.similarities[place] for place in places),
    )


def ineligible(query: Example, candidate: Example, classification_tasks: Collection[str]) -> str:
    """Return why a candidate cannot be a positive of the query, "" if it can.

    The label rule is that of the paper's code: in classification, a candidate with another label
    than the query's is never a positive, whatever the LM says.
    """
    if candidate.task != query.task:
        return OTHER_TASK
    if query.task in classification_tasks and candidate.answer != query.answer:
        return OTHER_LABEL
    return ""


def score_candidates(
    lm: LanguageModel,
    candidates: Sequence[Candidates],
    pool: Mapping[str, Example],
    *,
    classification_tasks: Collection[str],
    progress: str | None = None,
) -> list[LlmScores]:
    """Score every (query, candidate) pair. Both are looked up in `pool` by id.

    Raises `DataError` on an id that is not there, `PromptError` naming the query whose answer does
    not fit the LM's `max_length`, and `ModelError` where the LM returns NaN.
    """
    prompts, answers, reasons = [], [], []
    for item in candidates:
        query = _find(pool, item.query_id)
        for candidate_id in item.candidate_ids:
            candidate = _find(pool, candidate_id)
            prompts.append(assemble([candidate.text], query.query))
            answers.append(query.answer)
            reasons.append(ineligible(query, candidate, classification_tasks))
    try:
        llm_logprobs = lm.logprobs(prompts, answers, progress=progress)
    except PromptError as error:
        owners = [item.query_id for item in candidates for _ in item.candidate_ids]
        whose = "" if error.index is None else f"query {owners[error.index]!r}: "
        raise PromptError(f"{whose}{error}", index=error.index) from error
    scores, start = [], 0
    for item in candidates:
        stop = start + len(item.candidate_ids)
        scores.append(
            LlmScores(
                item.query_id,
                item.candidate_ids,
                tuple(llm_logprobs[start:stop]),
                tuple(reasons[start:stop]),
            )
        )
        start = stop
    return scores


def _find(pool: Mapping[str, Example], example_id: str) -> Example:
    if example_id not in pool:
        raise DataError(
            f"candidates name the example {example_id!r}, which is not in the pool. "
            "They were made from other data: remake them with `dvc repro`."
        )
    return pool[example_id]
