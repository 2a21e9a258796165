"""The step `bm25_candidates` as a component of Kubeflow Pipelines: a signature and one call."""

from kfp import dsl


@dsl.component(base_image="exemplar-python", install_kfp_package=False)
def bm25_candidates(
    bm25_candidates: str,
    data: dsl.Input[dsl.Dataset],
    candidates: dsl.Output[dsl.Dataset],
    figures: dsl.Output[dsl.Metrics],
):
    """Propose round 1's candidates by BM25, for every training query among its own task's pool.

    Args:
        bm25_candidates: The section of that name of a profile, as JSON.
        data: The data folder.
        candidates: Candidates of every training query, a Parquet file.
        figures: Counts and seconds.
    """
    from exemplar.kubeflow import pod

    pod.run(
        "bm25_candidates",
        settings={"bm25_candidates": bm25_candidates},
        inputs={"data": data},
        outputs={"out": candidates},
        figures=figures,
    )
