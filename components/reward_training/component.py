"""The step `reward_training` as a component of Kubeflow Pipelines: a signature and one call."""

from kfp import dsl


@dsl.component(base_image="exemplar-python", install_kfp_package=False)
def reward_training(
    seed: int,
    reward_training: str,
    number: int,
    data: dsl.Input[dsl.Dataset],
    llm_scores: dsl.Input[dsl.Dataset],
    reward_model: dsl.Output[dsl.Model],
    figures: dsl.Output[dsl.Metrics],
    nodes: str = "",
):
    """Train the reward model on the LM's scores; fail if it does not learn to rank.

    A try that was killed goes on from its last checkpoint, if the cache outlives the pod.

    Args:
        seed: Of every draw.
        reward_training: The section of that name of a profile, as JSON.
        number: The round, 1-based.
        data: The data folder.
        llm_scores: The LM's scores of this round.
        reward_model: A cross-encoder's folder with training.json.
        figures: How well it ranks held-out queries, and seconds.
        nodes: Pods that train together, as JSON from the cluster's settings; empty: this pod alone.
    """
    from exemplar.kubeflow import pod

    pod.run(
        "reward_training",
        settings={"seed": seed, "reward_training": reward_training},
        inputs={"data": data, "llm_scores": llm_scores},
        outputs={"out": reward_model},
        figures=figures,
        target=f"r{number}",
        number=number,
        nodes=nodes,
    )
