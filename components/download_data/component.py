"""The step `download_data` as a component of Kubeflow Pipelines: a signature and one call."""

from kfp import dsl


@dsl.component(base_image="exemplar-python", install_kfp_package=False)
def download_data(
    seed: int,
    download_data: str,
    data: dsl.Output[dsl.Dataset],
    figures: dsl.Output[dsl.Metrics],
):
    """Fetch examples from the source, check and split them, and seal them in a data folder.

    Args:
        seed: Of every draw.
        download_data: The section of that name of a profile, as JSON.
        data: pool.parquet, train.parquet, test.parquet and their manifest.json.
        figures: Counts and seconds.
    """
    from exemplar.kubeflow import pod

    pod.run(
        "download_data",
        settings={"seed": seed, "download_data": download_data},
        inputs={},
        outputs={"data": data},
        figures=figures,
    )
