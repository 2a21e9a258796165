"""Which candidates a training group holds, and which queries a batch holds.

A group is one positive and `num_negatives` negatives of one query. What a query can give does not
depend on the draw, so a query without a group is without one in every epoch and is counted once.
All groups have the same size, as batches need: where there are fewer negatives than asked for,
each is taken once and the rest are drawn again with replacement.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import TypeAlias

from exemplar import seeding
from exemplar.errors import TrainingError
from exemplar.records import Example, LlmScores, Rewards

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


def split_held_out(
    queries: Sequence[Example], fraction: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """Split queries into (training, held out), task by task, each in the order given.

    Of each task the share `fraction` is held out, rounded, but at least one query of a task that
    has two. The draw leaves the round out: a query held out once is never trained on in a later
    round, and the figures of rounds compare. Raises `TrainingError` where nothing can be held out.
    """
    if not 0 < fraction < 1:
        raise TrainingError(
            f"expected eval_fraction between 0 and 1, both excluded; got {fraction}."
        )
    by_task: dict[str, list[str]] = defaultdict(list)
    for query in queries:
        by_task[query.task].append(query.example_id)
    held_out: set[str] = set()
    for task, ids in by_task.items():
        wanted = min(max(1, round(fraction * len(ids))), len(ids) - 1)
        held_out.update(seeding.rng(seed, "held_out", task).sample(sorted(ids), wanted))
    if not held_out:
        raise TrainingError(
            f"{len(queries)} queries in {len(by_task)} tasks have a positive and a negative; at "
            "least one task needs two, one to train on and one to hold out. Score more queries."
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


def batch_stream(
    queries: Sequence[Example],
    batch_size: int,
    *,
    seed: tuple[object, ...],
    start: int = 0,
    homogeneous: bool = False,
) -> Iterator[tuple[int, list[Example]]]:
    """Yield (epoch, batch) for update `start`, `start` + 1, ... without end.

    What an update sees depends on `seed` and its number alone, so a run that continues sees what
    it would have seen. Raises `TrainingError` where there are no queries.
    """
    if not queries:
        raise TrainingError("there is no query to train on: none has a positive and a negative.")

    def batches_of(epoch: int) -> list[list[Example]]:
        generator = seeding.rng(*seed, "epoch", epoch)
        return epoch_batches(queries, batch_size, generator, homogeneous=homogeneous)

    first, skipped = divmod(start, len(batches_of(0)))  # every epoch has as many batches
    for epoch in count(first):
        yield from ((epoch, batch) for batch in batches_of(epoch)[skipped:])
        skipped = 0
