"""The steps whose work several processes can share out: LM scoring, rewards, evaluation.

Called plainly they do everything. With `shard` they do that share alone, and with `shares` they put
the shares of all processes together; the outcome is the same, to the last bit, as from one process
on the same kind of machine.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exemplar.config import Profile
from exemplar.data.dataset import read_dataset
from exemplar.data.io import write_records
from exemplar.data.shares import Shard, read_shares, write_share
from exemplar.lm import load as load_lm
from exemplar.lm.parts import Cut, Parts
from exemplar.records import Candidates, LlmScores, Outcome, Rewards

if TYPE_CHECKING:
    from exemplar.lm.base import LanguageModel

Figures = Mapping[str, Any]


def llm_scoring(
    profile: Profile,
    *,
    data: Path,
    candidates: Path,
    out: Path,
    number: int,
    shard: Shard | None = None,
    shares: Sequence[Path] = (),
    work: Path | None = None,
) -> Figures:
    """Score a draw of each query's candidates by the LM, part by part.

    With `shard` only the parts of that share are scored; without it all that are missing are, and
    `out` is put together: so the last call after any number of shards. Parts lie in the folder
    `work`, by default beside `out`, where all processes see them. If `work` is given, others need
    not see it: a shard also copies its parts to the folder `out`, and the last call takes them
    from `shares`.
    """
    from exemplar.lm import scoring

    dataset, settings = read_dataset(data), profile.llm_scoring
    drawn = scoring.draw_candidates(
        dataset.read(candidates, Candidates),
        num_candidates=settings.num_candidates,
        seed=profile.seed,
        number=number,
    )
    sealed = dataset.made_from(candidates=candidates)
    told = f"{profile.lm!r} {settings!r} seed={profile.seed} round={number}"
    examples = dataset.pool_examples(drawn)
    cut = Cut(drawn, examples, size=settings.part_size)
    parts = Parts(work or beside(out, "parts"), cut, sealed | {"settings": told})
    if shares:
        parts.gather(shares)
    figures = parts.score(
        lambda: _load_lm(profile),
        examples,
        classification_tasks=dataset.classification_tasks,
        shard=shard,
        progress=f"LM scoring, round {number}",
    )
    if shard is None:
        write_records(out, LlmScores, parts.merged(), made_from=sealed)
        parts.delete()
    elif work:
        parts.write_share(out, shard)
    return {"queries": len(drawn), **figures}


def reward_scoring(
    profile: Profile,
    *,
    data: Path,
    candidates: Path,
    reward_model: Path,
    out: Path,
    shard: Shard | None = None,
    shares: Sequence[Path] = (),
) -> Figures:
    """Give every proposed candidate a reward.

    With `shard`, `out` is the folder of that share alone; `shares` are put together instead.
    """
    from exemplar.training import reward, reward_shares

    dataset, dtype = read_dataset(data), profile.reward_training.dtype
    proposed = dataset.read(candidates, Candidates)
    sealed = dataset.made_from(candidates=candidates, reward_model=reward_model)
    told = sealed | {"settings": f"{profile.reward_scoring!r} dtype={dtype}"}
    if shares:
        parts = read_shares(shares, Rewards, made_from=told)
        rewards = reward_shares.join_rewards(proposed, parts)
    else:
        own = reward_shares.share_pairs(proposed, shard) if shard else proposed
        rewards = reward.score_rewards(
            reward_model,
            dataset.pool_examples(own),
            own,
            batch_tokens=profile.reward_scoring.batch_tokens,
            dtype=dtype,
            progress="rewards",
        )
    if shard:
        write_share(out, shard, Rewards, rewards, made_from=told)
    else:
        write_records(out, Rewards, rewards, made_from=sealed)
    return {"queries": len(rewards), "pairs": sum(len(item.rewards) for item in rewards)}


def evaluation(
    profile: Profile,
    *,
    data: Path,
    demonstrations: Path,
    out: Path,
    shard: Shard | None = None,
    shares: Sequence[Path] = (),
) -> Figures:
    """Let the LM answer every test query behind its demonstrations, and judge the answers.

    With `shard`, `out` is the folder of that share alone; `shares` are put together instead.
    """
    from exemplar.evaluation import folder, icl

    dataset, settings = read_dataset(data), profile.evaluation
    proposed = dataset.read(demonstrations, Candidates)
    examples = dataset.pool_examples(proposed)
    chosen = {item.query_id: [examples[name] for name in item.candidate_ids] for item in proposed}
    sealed = dataset.made_from(demonstrations=demonstrations)
    told = sealed | {"settings": f"{profile.lm!r} {settings!r}"}
    figures: dict[str, Any] = {}
    if shares:
        outcomes = icl.in_order(dataset.test, read_shares(shares, Outcome, made_from=told))
    else:
        lm = _load_lm(profile)
        outcomes = icl.predict(
            lm,
            icl.share_queries(dataset.test, dataset.specs, shard) if shard else dataset.test,
            chosen,
            dataset.specs,
            similarities={item.query_id: item.similarities for item in proposed},
            max_new_tokens=settings.max_new_tokens,
            progress=f"evaluation, {out.parent.name}",
        )
        figures = {"dtype": lm.dtype, **lm.stats.figures()}
    if shard:
        write_share(out, shard, Outcome, outcomes, made_from=told)
        return {"queries": len(outcomes), **figures}
    metrics = folder.write_evaluation(
        out,
        dataset,
        chosen,
        outcomes,
        lm=profile.lm.model_dump(include={"ref", "dtype"}),
        made_from=sealed,
        seed=profile.seed,
        num_resamples=settings.num_resamples,
    )
    return {**figures, "average": metrics["average"]["value"]}


def _load_lm(profile: Profile) -> LanguageModel:
    """Load the LM. A server's key comes from the environment, so that no file holds it."""
    return load_lm(**profile.lm.model_dump(), api_key=os.environ.get("EXEMPLAR_LM_API_KEY"))


def beside(out: Path, what: str) -> Path:
    """Name where a killed step goes on from; it lies beside what DVC deletes."""
    return out.with_name(f".{out.name}.{what}")
