"""The step `promotion` as a component of Kubeflow Pipelines: a signature and one call."""

from kfp import dsl


@dsl.component(base_image="exemplar-python", install_kfp_package=False)
def promotion(
    seed: int,
    lm: str,
    llm_scoring: str,
    reward_training: str,
    kd_training: str,
    search: str,
    promotion: str,
    baselines: list,
    number: int,
    data: dsl.Input[dsl.Dataset],
    rewards: dsl.Input[dsl.Dataset],
    reward_model: dsl.Input[dsl.Model],
    retriever: dsl.Input[dsl.Model],
    demonstrations: dsl.Input[dsl.Dataset],
    index: dsl.Input[dsl.Dataset],
    outcomes: dsl.Input[dsl.Dataset],
    earlier: dsl.Input[dsl.Artifact],
    run: dsl.Output[dsl.Artifact],
    decision: dsl.Output[dsl.Markdown],
    figures: dsl.Output[dsl.Metrics],
) -> bool:
    """Log the round to MLflow, register its retriever, and let the gate decide.

    Returns whether the retriever became champion. The MLflow server is MLFLOW_TRACKING_URI.

    Args:
        seed: Of every draw.
        lm: The section of that name of a profile, as JSON; logged.
        llm_scoring: The section of that name; logged.
        reward_training: The section of that name; logged.
        kd_training: The section of that name; logged.
        search: The section of that name; logged.
        promotion: The section of that name of a profile, as JSON.
        baselines: Of each its target (name), method and, optionally, encoder.
        number: The round, 1-based.
        data: The data folder.
        rewards: The rewards of this round, kept for the next ones.
        reward_model: The reward model of this round, for its curves.
        retriever: What is registered.
        demonstrations: Kept for the report.
        index: The embedded pool, registered with the retriever.
        outcomes: The evaluation that is compared with the champion's.
        earlier: The run's folder, which holds the baselines and earlier rounds.
        run: The run's folder with this round in it.
        decision: What the gate said, and why.
        figures: The round, and 1 if it was promoted.
    """
    from exemplar.kubeflow import run_folder

    return run_folder.promotion(
        settings={
            "seed": seed,
            "lm": lm,
            "llm_scoring": llm_scoring,
            "reward_training": reward_training,
            "kd_training": kd_training,
            "search": search,
            "promotion": promotion,
        },
        baselines=baselines,
        number=number,
        data=data,
        earlier=earlier,
        made={
            "rewards": rewards,
            "reward_model": reward_model,
            "retriever": retriever,
            "demonstrations": demonstrations,
            "index": index,
            "evaluation": outcomes,
        },
        run=run,
        decision=decision,
        figures=figures,
    )
