"""The step `kd_training` as a component of Kubeflow Pipelines: a signature and one call."""

from kfp import dsl


@dsl.component(base_image="exemplar-python", install_kfp_package=False)
def kd_training(
    seed: int,
    kd_training: str,
    number: int,
    data: dsl.Input[dsl.Dataset],
    llm_scores: dsl.Input[dsl.Dataset],
    rewards: dsl.Input[dsl.Dataset],
    earlier: dsl.Input[dsl.Artifact],
    retriever: dsl.Output[dsl.Model],
    figures: dsl.Output[dsl.Metrics],
    nodes: str = "",
):
    """Distil the rewards of all rounds so far into a retriever.

    A try that was killed goes on from its last checkpoint, if the cache outlives the pod.

    Args:
        seed: Of every draw.
        kd_training: The section of that name of a profile, as JSON.
        number: The round, 1-based.
        data: The data folder.
        llm_scores: The LM's scores of this round, to judge the retriever by.
        rewards: The rewards of this round.
        earlier: The run's folder, which holds the rewards of earlier rounds.
        retriever: A sentence-transformers folder with training.json.
        figures: How well it follows the rewards on held-out queries, and seconds.
        nodes: Pods that train together, as JSON from the cluster's settings; empty: this pod alone.
    """
    from exemplar.kubeflow import pod

    pod.kd_training(
        settings={"seed": seed, "kd_training": kd_training},
        inputs={"data": data, "llm_scores": llm_scores},
        rewards=rewards,
        earlier=earlier,
        outputs={"out": retriever},
        figures=figures,
        number=number,
        nodes=nodes,
    )
