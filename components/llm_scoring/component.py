"""The step `llm_scoring` as a component of Kubeflow Pipelines: a signature and one call."""

from typing import List

from kfp import dsl


@dsl.component(base_image="exemplar-python", install_kfp_package=False)
def llm_scoring(
    seed: int,
    lm: str,
    llm_scoring: str,
    number: int,
    data: dsl.Input[dsl.Dataset],
    candidates: dsl.Input[dsl.Dataset],
    llm_scores: dsl.Output[dsl.Dataset],
    figures: dsl.Output[dsl.Metrics],
    shard: str = "",
    shares: dsl.Input[List[dsl.Dataset]] = None,
):
    """Score candidates by how likely they make the right answer to the language model.

    A try that was killed goes on from its last whole part, if the cache outlives the pod.

    Args:
        seed: Of every draw.
        lm: The section of that name of a profile, as JSON.
        llm_scoring: The section of that name of a profile, as JSON.
        number: The round, 1-based.
        data: The data folder.
        candidates: What the LM's candidates are drawn from.
        llm_scores: Scores of every training query, a Parquet file; with `shard` a folder of parts.
        figures: Counts, tokens and seconds.
        shard: Score this share of the parts alone, for example 2/4.
        shares: The folders of all shares: they are put together, and nothing is scored.
    """
    from exemplar.kubeflow import pod

    pod.run(
        "llm_scoring",
        settings={"seed": seed, "lm": lm, "llm_scoring": llm_scoring},
        inputs={"data": data, "candidates": candidates, "shares": shares},
        outputs={"out": llm_scores},
        figures=figures,
        target=f"r{number}",
        number=number,
        shard=shard,
    )
