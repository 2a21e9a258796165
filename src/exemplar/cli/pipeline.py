"""`exemplar pipeline`: compile for Kubeflow Pipelines, run here, submit to a cluster, watch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from exemplar.errors import ConfigError, PipelineError
from exemplar.layout import Layout, Workspace

if TYPE_CHECKING:
    from exemplar.kubeflow.endpoint import Endpoint
    from exemplar.kubeflow.local import Finished
    from exemplar.kubeflow.package import Package

pipeline_app = typer.Typer(
    no_args_is_help=True,
    help="Kubeflow Pipelines: compile, run here, submit to a cluster, watch.",
    epilog="Examples: exemplar pipeline compile --rounds 2 --shards 4 --hardware gpu-small | "
    "exemplar pipeline run | exemplar pipeline submit --endpoint http://localhost:8080 --watch",
)

TOKEN, COOKIE = "EXEMPLAR_KFP_TOKEN", "EXEMPLAR_KFP_COOKIE"
DEFAULT_PACKAGE = Path("pipeline.yaml")

PackageArgument = Annotated[
    Path, typer.Argument(help="A compiled pipeline, from `exemplar pipeline compile`.")
]
ProfileOption = Annotated[
    str | None,
    typer.Option(help="Take all settings from this profile of params.yaml, not the compiled ones."),
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="KEY=VALUE, e.g. kd_training.num_updates=200.")
]
EndpointOption = Annotated[
    str,
    typer.Option(
        envvar="KF_PIPELINES_ENDPOINT", help="Address of Kubeflow Pipelines, with its scheme."
    ),
]
NamespaceOption = Annotated[
    str, typer.Option(help="The Kubernetes namespace, where Kubeflow has several users.")
]
CertificateOption = Annotated[
    Path | None, typer.Option(help="Certificate authorities of the endpoint, a PEM file.")
]
TimeoutOption = Annotated[
    float, typer.Option(min=1, help="Seconds to wait for an answer of the endpoint.")
]


@pipeline_app.command("compile")
def compile_(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="iteration or round.")] = "iteration",
    out: Annotated[Path, typer.Option(help="The file to write.")] = DEFAULT_PACKAGE,
    profile: Annotated[str | None, typer.Option(help="Default: the one that is on.")] = None,
    settings: SetOption = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Default: as in params.yaml.")] = None,
    shards: Annotated[
        int, typer.Option(min=1, help="Pods that share each scoring and evaluation out.")
    ] = 1,
    early_stop: Annotated[
        bool, typer.Option("--early-stop", help="No further round once the gate has refused one.")
    ] = False,
    number: Annotated[
        int, typer.Option("--round", min=1, help="The round's number, for the pipeline round.")
    ] = 1,
    retriever: Annotated[
        str, typer.Option(help="For round: candidates from models:/NAME@ALIAS, not from BM25.")
    ] = "",
    image: Annotated[
        str | None, typer.Option(help="The project's image. Default: exemplar-python:VERSION.")
    ] = None,
    hardware: Annotated[
        str, typer.Option(help="Machines of the steps with a model, as named in --cluster.")
    ] = "cpu",
    cluster: Annotated[Path, typer.Option(help="What each step gets on a cluster.")] = Path(
        "infra/kubernetes/profile.yaml"
    ),
) -> None:
    """Compile a pipeline to one YAML file: the same file, byte for byte, from the same input.

    Settings become the pipeline's parameters, with those of the profile as defaults; how many
    rounds and shards there are, images and machines are fixed in the file.

    Example: exemplar pipeline compile --rounds 3 --shards 8 --hardware gpu-large --early-stop
    """
    from exemplar import __version__
    from exemplar.kubeflow import arguments, compiling
    from exemplar.kubeflow.cluster import load_cluster
    from exemplar.kubeflow.placement import Placement
    from exemplar.kubeflow.plan import Plan

    if name not in compiling.PIPELINES:
        raise ConfigError(
            f"pipeline {name!r} is unknown; expected one of {', '.join(compiling.PIPELINES)}."
        )
    if retriever and name != "round":
        raise ConfigError("--retriever starts the pipeline `round`; iteration begins with BM25.")
    params = context.obj.params
    placement = Placement(
        load_cluster(cluster),
        image=image or f"exemplar-python:{__version__}",
        hardware=hardware,
    )
    plan = Plan(
        placement,
        rounds=rounds or len(params.rounds),
        shards=shards,
        early_stop=early_stop,
        number=number,
        retriever=retriever,
    )
    if params.trained:
        names = ", ".join(params.trained)
        typer.echo(f"left out: {names}; what `trained` lists runs by DVC alone", err=True)
    defaults = arguments.of_profile(_chosen(context, profile), params.baselines)
    size = compiling.compile_pipeline(
        name, plan, arguments.overridden(defaults, settings or []), out, project=Path()
    )
    typer.echo(f"{out}: pipeline {name}, {size / 1024:.0f} KiB")


@pipeline_app.command("run")
def run(
    context: typer.Context,
    package: PackageArgument = DEFAULT_PACKAGE,
    profile: ProfileOption = None,
    settings: SetOption = None,
    outputs: Annotated[
        Path, typer.Option(help="Folder in which the run gets one of its own.")
    ] = Path("runs"),
) -> None:
    """Run a compiled pipeline on this machine: each task a process, no container, no cluster.

    Cluster settings have no effect here, and what fails is not tried again.
    """
    from exemplar.kubeflow.local import run_here
    from exemplar.kubeflow.package import read_package

    found = read_package(package)
    arguments = _arguments(context, found, profile, settings)
    root = context.obj.layout.root
    done = run_here(
        found, arguments, outputs=outputs, root=root, say=lambda line: typer.echo(line, err=True)
    )
    show(done, arguments, root)


@pipeline_app.command("submit")
def submit(
    context: typer.Context,
    endpoint: EndpointOption,
    package: PackageArgument = DEFAULT_PACKAGE,
    experiment: Annotated[str, typer.Option(help="The KFP experiment.")] = "exemplar",
    name: Annotated[str | None, typer.Option(help="The run. Default: pipeline and time.")] = None,
    profile: ProfileOption = None,
    settings: SetOption = None,
    service_account: Annotated[
        str, typer.Option(help="Kubernetes service account of the pods.")
    ] = "",
    namespace: NamespaceOption = "",
    cached: Annotated[
        bool, typer.Option("--cache/--no-cache", help="Reuse what earlier runs made.")
    ] = True,
    ca_cert: CertificateOption = None,
    timeout: TimeoutOption = 30.0,
    watching: Annotated[bool, typer.Option("--watch", help="Follow the run to its end.")] = False,
) -> None:
    """Send a compiled pipeline to a KFP endpoint and start a run of it.

    The file is uploaded once: a version is named after its content. Credentials come from the
    environment: EXEMPLAR_KFP_TOKEN (bearer) or EXEMPLAR_KFP_COOKIE (session).

    Example: exemplar pipeline submit --endpoint http://localhost:8080 --set seed=1 --watch
    """
    import time

    from exemplar.kubeflow import client
    from exemplar.kubeflow.package import read_package

    found = read_package(package)
    arguments = _arguments(context, found, profile, settings)
    where = _endpoint(endpoint, namespace, ca_cert, timeout)
    sent = client.submit(
        where,
        found,
        arguments,
        experiment=experiment,
        run_name=name or f"{found.name} {time.strftime('%Y-%m-%d %H:%M:%S')}",
        service_account=service_account,
        cached=cached,
    )
    typer.echo(f"run {sent.run_id} of version {sent.version}: {sent.url}")
    if watching:
        _follow(where, sent.run_id, 5.0)


@pipeline_app.command("watch")
def watch(
    run_id: Annotated[str, typer.Argument(help="The run's id, as `submit` prints it.")],
    endpoint: EndpointOption,
    namespace: NamespaceOption = "",
    ca_cert: CertificateOption = None,
    timeout: TimeoutOption = 30.0,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 5.0,
) -> None:
    """Follow a run in the terminal to its end. Exit code 2 if it fails."""
    _follow(_endpoint(endpoint, namespace, ca_cert, timeout), run_id, every)


def show(done: Finished, arguments: dict[str, Any], root: Path) -> None:
    """Print what a run here gave, and where it lies."""
    from exemplar.kubeflow.arguments import BASELINES, SECTIONS, params_of
    from exemplar.summary import print_results
    from exemplar.tracking.store import store_uri

    layout = Layout(done.run)
    sections = {name: arguments[name] for name in SECTIONS}
    print_results(params_of(sections, arguments[BASELINES], list(layout.rounds())), layout)
    typer.echo(f"report: {done.page}\nMLflow: {store_uri(root)}")


def _chosen(context: typer.Context, profile: str | None) -> Any:
    space: Workspace = context.obj
    params = space.params
    if profile is not None and profile not in params.profiles:
        known = ", ".join(params.profiles)
        raise ConfigError(f"--profile {profile!r} is not in params.yaml; known: {known}.")
    return params.profiles[profile] if profile else params.active


def _arguments(
    context: typer.Context, package: Package, profile: str | None, settings: list[str] | None
) -> dict[str, Any]:
    """Return the run's arguments: the compiled ones, or a profile's, with the settings in them."""
    from exemplar.kubeflow import arguments

    given: dict[str, Any] = {}
    if profile:
        given = arguments.of_profile(_chosen(context, profile), context.obj.params.baselines)
    return arguments.overridden(package.arguments(given), settings or [])


def _endpoint(host: str, namespace: str, ca_cert: Path | None, timeout: float) -> Endpoint:
    from exemplar.kubeflow.endpoint import Endpoint

    if not host.startswith(("http://", "https://")):
        raise ConfigError(f"--endpoint {host!r}: expected an address with http:// or https://.")
    return Endpoint(
        host=host.rstrip("/"),
        namespace=namespace,
        token=os.environ.get(TOKEN, ""),
        cookie=os.environ.get(COOKIE, ""),
        certificate=str(ca_cert or ""),
        timeout_s=timeout,
    )


def _follow(endpoint: Endpoint, run_id: str, every_s: float) -> None:
    import time

    from exemplar.kubeflow import client

    state, error = "", ""
    for change in client.watch(endpoint, run_id, every_s=every_s):
        clock = time.strftime("%H:%M:%S")
        typer.echo(f"{clock}  {change.state.lower():10} {change.task or 'the run'}")
        if change.error:
            typer.echo(f"          {change.error}")
        if not change.task:
            state, error = change.state, change.error
    if state != client.SUCCEEDED:
        raise PipelineError(
            f"run {run_id} ended as {state}{': ' + error if error else ''}. Its page has the logs "
            "of the task that failed; steps that are done are reused when it is sent again."
        )
