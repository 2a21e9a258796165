"""The step `search` as a component of Kubeflow Pipelines: a signature and one call."""

from kfp import dsl


@dsl.component(base_image="exemplar-python", install_kfp_package=False)
def search(
    seed: int,
    search: str,
    bm25_candidates: str,
    kd_training: str,
    target: str,
    data: dsl.Input[dsl.Dataset],
    demonstrations: dsl.Output[dsl.Dataset],
    next_candidates: dsl.Output[dsl.Dataset],
    index: dsl.Output[dsl.Dataset],
    figures: dsl.Output[dsl.Metrics],
    method: dict = {},
    registered: str = "",
    retriever: dsl.Input[dsl.Model] = None,
):
    """Choose demonstrations for the test queries, and the next round's candidates.

    Give one of `method`, `registered` and `retriever`. A baseline's `method` writes demonstrations
    alone.

    Args:
        seed: Of every draw.
        search: The section of that name of a profile, as JSON.
        bm25_candidates: The section of that name; of it BM25's constants count.
        kd_training: The section of that name; of it the encoder that training starts from counts.
        target: The round (r1) or baseline (bm25), for figures and progress.
        data: The data folder.
        demonstrations: Of every test query, a Parquet file.
        next_candidates: Of every training query, for the next round; a Parquet file.
        index: The embedded pool, as it is served.
        figures: Counts and seconds.
        method: A baseline: its method and, for dense and kmeans, optionally its encoder.
        registered: A retriever in the registry: models:/NAME@ALIAS.
        retriever: The retriever of this round.
    """
    from exemplar.kubeflow import pod

    pod.search(
        settings={
            "seed": seed,
            "search": search,
            "bm25_candidates": bm25_candidates,
            "kd_training": kd_training,
        },
        data=data,
        retriever=retriever,
        method=method,
        registered=registered,
        outputs={"out": demonstrations, "next_candidates": next_candidates, "index": index},
        figures=figures,
        target=target,
    )
