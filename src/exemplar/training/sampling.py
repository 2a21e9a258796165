"""Which candidates a training group holds, and which queries a batch holds.

A group is one positive and `num_negatives` negatives of one query. What a query can give does not
depend on the draw, so a query without a group is without one in every epoch and is counted once.
All groups have the same size, as batches need: where there are fewer negatives than asked for,
each is taken once and the rest are drawn again with replacement.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from exemplar import seeding
from exemplar.errors import DataError, TrainingError
from exemplar.records import Candidates, Example, LlmScores, Rewards

Group: TypeAlias = tuple[int, tuple[int, ...]]
"""Indices into `candidate_ids`: the positive and its negatives."""


def llm_ranking(scores: LlmScores) -> list[int]:
    """Return the candidates' indices, best first: the ineligible below every eligible one.

    Within each part the order is that of llm_logprob; equal ones keep their order in the file.
    """
    return sorted(
        range(len(scores.candidate_ids)),
        key=lambda i: (bool(scores.reasons[i]), -scores.llm_logprobs[i]),
    )


def reward_group(
    scores: LlmScores, rng: random.Random, *, num_top: int, num_bottom: int, num_negatives: int
) -> Group | None:
    """Draw a group that trains the reward model (paper, section 3.3), or None.

    The positive is eligible and among the best `num_top` of `llm_ranking`; the negatives are among
    the worst `num_bottom` and rank below the positive, so that in a short list no group asks for
    the opposite of what the LM said. None where no candidate is eligible, or only one was scored.
    """
    ranking = llm_ranking(scores)
    tops = [i for i in ranking[:num_top] if not scores.reasons[i]]
    return _draw(ranking, tops, ranking, rng, num_bottom, num_negatives)


def distill_group(
    rewards: Rewards,
    pool: Mapping[str, Example],
    query: Example,
    rng: random.Random,
    *,
    num_top: int = 3,
    num_bottom: int = 16,
    num_negatives: int = 3,
    drop_same_label: bool = False,
) -> Group | None:
    """Draw a group that trains the retriever (paper, section 3.4), or None.

    The positive is among the `num_top` of highest reward; the negatives are among the `num_bottom`
    of lowest reward and rank below the positive. With `drop_same_label` (classification) those
    that carry the query's own answer are no negatives: they would help the LM. None where nothing
    is left to be a negative.
    """
    ranking = sorted(range(len(rewards.candidate_ids)), key=lambda i: -rewards.rewards[i])
    usable = ranking
    if drop_same_label:
        usable = [i for i in ranking if pool[rewards.candidate_ids[i]].answer != query.answer]
    return _draw(ranking, ranking[:num_top], usable, rng, num_bottom, num_negatives)


def contrast_group(
    scores: LlmScores,
    pool: Mapping[str, Example],
    query: Example,
    rng: random.Random,
    *,
    num_top: int = 3,
    num_bottom: int = 16,
    num_negatives: int = 3,
    drop_same_label: bool = False,
) -> Group | None:
    """Draw a group that trains a retriever on the LM's scores themselves, or None.

    As in EPR (Rubin, Herzig and Berant 2022, section 3): the positive is eligible and among the
    best `num_top` of `llm_ranking`, the negatives are among the worst `num_bottom`. All else is as
    in `distill_group`.
    """
    ranking = llm_ranking(scores)
    usable = ranking
    if drop_same_label:
        usable = [i for i in ranking if pool[scores.candidate_ids[i]].answer != query.answer]
    tops = [i for i in ranking[:num_top] if not scores.reasons[i]]
    return _draw(ranking, tops, usable, rng, num_bottom, num_negatives)


def _draw(
    ranking: Sequence[int],
    tops: Sequence[int],
    usable: Sequence[int],
    rng: random.Random,
    num_bottom: int,
    num_negatives: int,
) -> Group | None:
    """Draw a positive from `tops` and negatives from the worst of `usable` below it."""
    place = {index: place for place, index in enumerate(ranking)}
    tops = [top for top in tops if usable and place[usable[-1]] > place[top]]
    if not tops:
        return None
    positive = rng.choice(tops)
    below = [index for index in usable[-num_bottom:] if place[index] > place[positive]]
    negatives = rng.sample(below, min(num_negatives, len(below)))
    negatives += rng.choices(below, k=num_negatives - len(negatives))
    return positive, tuple(negatives)


def require_examples(
    examples_by_id: Mapping[str, Example], records: Iterable[LlmScores | Rewards | Candidates]
) -> None:
    """Raise `DataError` where a query or a candidate of `records` is no known example."""
    for record in records:
        for example_id in (record.query_id, *record.candidate_ids):
            if example_id not in examples_by_id:
                raise DataError(
                    f"{type(record).__name__} of query {record.query_id!r} names the example "
                    f"{example_id!r}, which is neither in the pool nor among the queries. The "
                    "files were made from different data: remake them with `dvc repro`."
                )


def split_held_out(
    queries: Sequence[Example], fraction: float, seed: int, *, most: int = 256
) -> tuple[list[Example], list[Example]]:
    """Split queries into (training, held out), task by task, each in the order given.

    Of each task the share `fraction` is held out, rounded, at least one query of a task that has
    two, at most `most` / number of tasks. The draw leaves the round out: a query held out once is
    trained on in no round, and the figures of rounds compare. Raises `TrainingError` where nothing
    can be held out.
    """
    if not 0 < fraction < 1:
        raise TrainingError(f"expected eval_fraction between 0 and 1, both excluded: {fraction}.")
    by_task: dict[str, list[str]] = defaultdict(list)
    for query in queries:
        by_task[query.task].append(query.example_id)
    held_out: set[str] = set()
    for ids in by_task.values():
        wanted = min(round(fraction * len(ids)), most // len(by_task))
        wanted = min(max(1, wanted), len(ids) - 1)
        draw = sorted(ids, key=lambda example_id: seeding.derive_seed(seed, "held_out", example_id))
        held_out.update(draw[:wanted])
    if not held_out:
        raise TrainingError(
            f"{len(queries)} queries in {len(by_task)} tasks came; at least one task needs two, "
            "one to train on and one to hold out. Score more queries."
        )
    return (
        [query for query in queries if query.example_id not in held_out],
        [query for query in queries if query.example_id in held_out],
    )


def epoch_batches(
    queries: Sequence[Example], batch_size: int, rng: random.Random, *, homogeneous: bool = False
) -> list[list[Example]]:
    """Return the batches of one epoch; no query occurs twice in it.

    Batches are whole: the queries left over wait for another epoch. Only where there are fewer
    than `batch_size` in all is there one short batch. `homogeneous` (beyond the paper): every
    batch holds queries of one task, so that in-batch negatives are hard ones.
    """
    pools: dict[str, list[Example]] = defaultdict(list)
    for query in queries:
        pools[query.task if homogeneous else ""].append(query)
    batches = []
    for members in pools.values():
        shuffled = rng.sample(members, len(members))
        whole = max(len(shuffled) - len(shuffled) % batch_size, min(batch_size, len(shuffled)))
        batches += [shuffled[i : i + batch_size] for i in range(0, whole, batch_size)]
    return rng.sample(batches, len(batches))


class Batches:
    """The batches of a training, by the number of the update.

    What an update sees depends on the seed and its number alone, so that a training that was
    killed and continues sees what it would have seen.
    """

    def __init__(
        self, queries: Sequence[Example], batch_size: int, *seed: object, homogeneous: bool = False
    ) -> None:
        if not queries:
            raise TrainingError(
                "there is no query to train on: none has both a positive and a negative among its "
                "candidates. Score more candidates, or more queries."
            )
        self._queries, self._batch_size, self._seed = queries, batch_size, seed
        self._homogeneous = homogeneous
        self._epoch, self._batches = 0, self._draw(0)

    def _draw(self, epoch: int) -> list[list[Example]]:
        generator = seeding.rng(*self._seed, "batches", epoch)
        return epoch_batches(
            self._queries, self._batch_size, generator, homogeneous=self._homogeneous
        )

    def at(self, update: int) -> tuple[int, list[Example]]:
        """Return the epoch and the queries of an update, both counted from 0."""
        epoch, place = divmod(update, len(self._batches))  # every epoch has as many batches
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._draw(epoch)
        return epoch, self._batches[place]
