"""The step `reward_scoring` as a component of Kubeflow Pipelines: a signature and one call."""

from typing import List

from kfp import dsl


@dsl.component(base_image="exemplar-python", install_kfp_package=False)
def reward_scoring(
    reward_scoring: str,
    reward_training: str,
    number: int,
    data: dsl.Input[dsl.Dataset],
    candidates: dsl.Input[dsl.Dataset],
    reward_model: dsl.Input[dsl.Model],
    rewards: dsl.Output[dsl.Dataset],
    figures: dsl.Output[dsl.Metrics],
    shard: str = "",
    shares: dsl.Input[List[dsl.Dataset]] = None,
):
    """Give every proposed candidate a reward.

    Args:
        reward_scoring: The section of that name of a profile, as JSON.
        reward_training: The section of that name; of it the precision counts.
        number: The round, 1-based.
        data: The data folder.
        candidates: The candidates of this round.
        reward_model: The reward model of this round.
        rewards: Rewards of every training query, a Parquet file; with `shard` that share's folder.
        figures: Counts and seconds.
        shard: Score this share of the pairs alone, for example 2/4.
        shares: The folders of all shares: they are put together, and nothing is scored.
    """
    from exemplar.kubeflow import pod

    pod.run(
        "reward_scoring",
        settings={"reward_scoring": reward_scoring, "reward_training": reward_training},
        inputs={
            "data": data,
            "candidates": candidates,
            "reward_model": reward_model,
            "shares": shares,
        },
        outputs={"out": rewards},
        figures=figures,
        target=f"r{number}",
        shard=shard,
    )
