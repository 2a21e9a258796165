"""Reward scoring shared out: which pairs fall to a share, and all shares' rewards in one order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from exemplar.data.shares import Shard
from exemplar.errors import DataError
from exemplar.lm.scoring import at
from exemplar.records import Candidates, Rewards
from exemplar.training.reward import SLAB


def share_pairs(candidates: Sequence[Candidates], shard: Shard) -> list[Candidates]:
    """Return those (query, candidate) pairs that fall to a share, slab by slab.

    Whole slabs keep together what is computed together, so that a share's figures equal, to the
    last bit, those of a process that does everything.
    """
    shared, begin = [], 0
    for item in candidates:
        places = [
            place for place in range(len(item.candidate_ids)) if shard.has((begin + place) // SLAB)
        ]
        begin += len(item.candidate_ids)
        if places:
            shared.append(at(item, places))
    return shared


def join_rewards(candidates: Sequence[Candidates], parts: Iterable[Rewards]) -> list[Rewards]:
    """Put the rewards of all shares in the order of `candidates`, one record a query.

    Raises `DataError` where a pair has no reward.
    """
    by_pair = {
        (part.query_id, candidate_id): reward
        for part in parts
        for candidate_id, reward in zip(part.candidate_ids, part.rewards, strict=True)
    }
    joined = []
    for item in candidates:
        try:
            rewards = tuple(by_pair[item.query_id, name] for name in item.candidate_ids)
        except KeyError as error:
            raise DataError(
                f"no share holds a reward for the pair {error.args[0]}. Make the shares again, all "
                "with the same version of Exemplar."
            ) from None
        joined.append(Rewards(item.query_id, item.candidate_ids, rewards))
    return joined
