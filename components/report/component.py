"""The step `report` as a component of Kubeflow Pipelines: a signature and one call."""

from kfp import dsl


@dsl.component(base_image="exemplar-python", install_kfp_package=False)
def report(
    seed: int,
    lm: str,
    reward_training: str,
    kd_training: str,
    search: str,
    promotion: str,
    report: str,
    baselines: list,
    data: dsl.Input[dsl.Dataset],
    run: dsl.Input[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
    tables: dsl.Output[dsl.Artifact],
    figures: dsl.Output[dsl.Metrics],
):
    """Write the report page, figures and plots from all evaluations so far.

    Args:
        seed: Of every draw.
        lm: The section of that name of a profile, as JSON; named on the page.
        reward_training: The section of that name; named on the page.
        kd_training: The section of that name; named on the page.
        search: The section of that name; named on the page.
        promotion: The section of that name; of it the margin and the experiment count.
        report: The section of that name of a profile, as JSON.
        baselines: Of each its target (name), method and, optionally, encoder.
        data: The data folder.
        run: The run's folder, with baselines and rounds.
        page: The report, one HTML file that loads nothing.
        tables: metrics/rounds.csv, metrics/rounds.json and plots/average.svg.
        figures: The average of every method.
    """
    from exemplar.kubeflow import run_folder

    run_folder.report(
        settings={
            "seed": seed,
            "lm": lm,
            "reward_training": reward_training,
            "kd_training": kd_training,
            "search": search,
            "promotion": promotion,
            "report": report,
        },
        baselines=baselines,
        data=data,
        run=run,
        page=page,
        tables=tables,
        figures=figures,
    )
