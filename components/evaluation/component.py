"""The step `evaluation` as a component of Kubeflow Pipelines: a signature and one call."""

from typing import List

from kfp import dsl


@dsl.component(base_image="exemplar-python", install_kfp_package=False)
def evaluation(
    seed: int,
    lm: str,
    evaluation: str,
    target: str,
    data: dsl.Input[dsl.Dataset],
    demonstrations: dsl.Input[dsl.Dataset],
    outcomes: dsl.Output[dsl.Dataset],
    figures: dsl.Output[dsl.Metrics],
    shard: str = "",
    shares: dsl.Input[List[dsl.Dataset]] = None,
):
    """Let the language model answer the test queries behind their demonstrations, and judge it.

    Args:
        seed: Of every draw.
        lm: The section of that name of a profile, as JSON.
        evaluation: The section of that name of a profile, as JSON.
        target: The round (r1) or baseline (bm25), for figures and progress.
        data: The data folder.
        demonstrations: Those of every test query.
        outcomes: metrics.json, outcomes.parquet and examples.md; with `shard` that share's folder.
        figures: The average, tokens and seconds.
        shard: Answer this share of the queries alone, for example 2/4.
        shares: The folders of all shares: they are put together, and nothing is asked.
    """
    from exemplar.kubeflow import pod

    pod.run(
        "evaluation",
        settings={"seed": seed, "lm": lm, "evaluation": evaluation},
        inputs={"data": data, "demonstrations": demonstrations, "shares": shares},
        outputs={"out": outcomes},
        figures=figures,
        target=target,
        shard=shard,
    )
