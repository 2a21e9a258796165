"""Components beside the ten steps: a run's folder, and the MLflow run of the whole pipeline."""

from kfp import dsl


@dsl.component(base_image="exemplar-python", install_kfp_package=False)
def open_run(promotion: str, name: str, pipeline_run: str):
    """Open the MLflow run of this pipeline run.

    Args:
        promotion: The section of that name of a profile, as JSON; of it the experiment counts.
        name: What the run is called.
        pipeline_run: Id of the pipeline's run, by which the run is found again.
    """
    from exemplar.kubeflow import mlflow_run

    mlflow_run.open_run(settings={"promotion": promotion}, name=name, pipeline_run=pipeline_run)


@dsl.component(base_image="exemplar-python", install_kfp_package=False)
def close_run(promotion: str, pipeline_run: str, status: dsl.PipelineTaskFinalStatus):
    """Close the MLflow run of this pipeline run with its state.

    Args:
        promotion: The section of that name of a profile, as JSON; of it the experiment counts.
        pipeline_run: Id of the pipeline's run.
        status: How the pipeline ended.
    """
    from exemplar.kubeflow import mlflow_run

    mlflow_run.close_run(
        settings={"promotion": promotion},
        pipeline_run=pipeline_run,
        state=status.state,
        error=status.error_message or "",
    )


@dsl.component(base_image="exemplar-python", install_kfp_package=False)
def start_run(
    demonstrations: dsl.Input[list[dsl.Dataset]],
    evaluations: dsl.Input[list[dsl.Dataset]],
    run: dsl.Output[dsl.Artifact],
):
    """Begin the run's folder with the baselines.

    Args:
        demonstrations: Of every baseline.
        evaluations: Of every baseline, in the same order.
        run: The folder, to which every round adds its own.
    """
    from exemplar.kubeflow import run_folder

    run_folder.start(demonstrations=demonstrations, evaluations=evaluations, run=run)
