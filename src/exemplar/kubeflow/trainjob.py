"""A training on several nodes: a TrainJob of Kubeflow Trainer, started and followed from one pod.

The nodes see nothing of that pod but the cache volume. So inputs are copied there, the nodes write
there, and the result is copied from there.
"""

from __future__ import annotations

import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from exemplar.data.io import atomic_folder, atomic_path, read_json, write_json
from exemplar.errors import PipelineError, TrainingError
from exemplar.kubeflow.node import FIGURES, written
from exemplar.kubeflow.nodes import Nodes

PAUSE_S = 10.0
"""Between two looks at a job."""

PATIENCE_S = 600.0
"""How long the cluster's API may fail to answer before the wait is given up."""

_FIRST = "node-0"


def train(
    step: str,
    *,
    settings: Mapping[str, Any],
    arguments: Mapping[str, Any],
    nodes: Nodes,
) -> dict[str, Any]:
    """Run a training step on several nodes and return what it returned.

    `arguments`: those of the step, `work` (a folder in the cache) and `out` among them. The job is
    named after the work folder, which is named after what is to be made: a try that comes after a
    killed one finds the job and waits for it. If this process is told to end, it ends the job.
    Raises `TrainingError` where the job fails, `PipelineError` where the cluster cannot be asked.
    """
    work: Path = arguments["work"]
    folder = work.with_name(f"{work.name}-nodes")
    name = work.name.replace("_", "-")[-50:]
    if not (folder / FIGURES).is_file():
        call = _stage(step, settings, arguments, folder)
        client = _asked("connecting to the cluster", _connect)
        with _ended_with_this_process(client, name):
            _start(client, name, call, nodes)
            _follow(client, name, folder / FIGURES)
            _asked(f"removing {name}", lambda: client.delete_job(name))
    counts: dict[str, Any] = read_json(folder / FIGURES)
    out: Path = arguments["out"]
    with atomic_folder(out) as temporary:
        shutil.copytree(folder / "out", temporary, dirs_exist_ok=True)
    shutil.rmtree(folder)
    return counts


def _stage(
    step: str, settings: Mapping[str, Any], arguments: Mapping[str, Any], folder: Path
) -> Path:
    """Copy the inputs to where the nodes can read them, and write down what they shall do."""

    def copied(value: Any, place: Path) -> Any:
        if isinstance(value, list):
            return [copied(item, place / str(number)) for number, item in enumerate(value)]
        if not isinstance(value, Path):
            return value
        if value.is_dir() and not place.exists():
            with atomic_folder(place) as temporary:
                shutil.copytree(value, temporary, dirs_exist_ok=True)
        elif value.is_file() and not place.exists():
            with atomic_path(place) as temporary:
                shutil.copyfile(value, temporary)
        return place

    own = {"work": arguments["work"], "out": folder / "out"}
    others = {name: value for name, value in arguments.items() if name not in own}
    staged = {name: copied(value, folder / "inputs" / name) for name, value in others.items()}
    call = folder / "call.json"
    write_json(call, {"step": step, "settings": dict(settings), "arguments": written(staged | own)})
    return call


def _connect() -> Any:
    from kubeflow.trainer import TrainerClient

    return TrainerClient()


def _asked(doing: str, ask: Callable[[], Any]) -> Any:
    """Ask the cluster; what it answers instead becomes an error with its cause."""
    from kubernetes.client import ApiException
    from kubernetes.config import ConfigException

    try:
        return ask()
    except (RuntimeError, TimeoutError, ApiException, ConfigException) as error:
        cause = error.__cause__ or error
        told = getattr(cause, "reason", None) or cause
        raise PipelineError(
            f"{doing}: {error} ({told}). Expected a cluster with Kubeflow Trainer 2 whose runtimes "
            "this pod's account may read, and whose TrainJobs it may make, read and delete "
            "(infra/kubernetes/base/pipeline/account.yaml)."
        ) from error


def _find(client: Any, name: str) -> Any:
    """Return the job of this name, or None."""
    try:
        return client.get_job(name)
    except RuntimeError as error:
        if getattr(error.__cause__, "status", None) == 404:
            return None
        raise


def _start(client: Any, name: str, call: Path, nodes: Nodes) -> None:
    """Make the job, unless one of this name is at it; one that failed makes room first."""
    found = _asked(f"looking for {name}", lambda: _find(client, name))
    if found is not None and found.status != "Failed":
        _say(f"TrainJob {name} is there, {found.status.lower()}: waiting for it")
        return
    if found is not None:
        _asked(f"removing {name}, which failed", lambda: client.delete_job(name))
        while _asked(f"looking for {name}", lambda: _find(client, name)) is not None:
            time.sleep(PAUSE_S)
    made = _asked(f"making TrainJob {name}", lambda: _submit(client, name, call, nodes))
    _say(f"TrainJob {made}: {nodes.count} nodes")


def _submit(client: Any, name: str, call: Path, nodes: Nodes) -> str:
    from kubeflow.trainer import CustomTrainerContainer, options

    container = options.ContainerPatch(name="node", **nodes.container())
    pod = options.PodSpecPatch(containers=[container], **nodes.pod())
    labels = {**nodes.labels, "app.kubernetes.io/component": name.rpartition("-")[0]}
    # A mesh's sidecar goes on when the training has ended, and the job would never be complete.
    template = options.PodTemplatePatch(
        metadata={"labels": labels, "annotations": {"sidecar.istio.io/inject": "false"}}, spec=pod
    )
    job = options.JobTemplatePatch(spec=options.JobSpecPatch(template=template))
    replicated = options.ReplicatedJobPatch(name="node", template=job)
    jobs = options.JobSetSpecPatch(replicated_jobs=[replicated])
    runtime = options.TrainingRuntimeSpecPatch(template=options.JobSetTemplatePatch(spec=jobs))
    submitted: str = client.train(
        runtime=nodes.runtime,
        trainer=CustomTrainerContainer(
            image=nodes.image, num_nodes=nodes.count, resources_per_node=nodes.resources()
        ),
        options=[
            options.Name(name),
            options.Labels(labels),
            # Trainer tells torchrun nodes, processes and rendezvous in the environment.
            options.TrainerCommand(["torchrun", "-m", "exemplar.kubeflow.node", str(call)]),
            options.ActiveDeadlineSeconds(nodes.hours * 3600),
            options.RuntimePatch(training_runtime_spec=runtime),
        ],
    )
    return submitted


def _follow(client: Any, name: str, figures: Path) -> None:
    """Wait for the job's end, showing what the first node prints."""
    shown, last = 0, time.monotonic()
    while True:
        try:
            job = _find(client, name)
        except (RuntimeError, TimeoutError) as error:
            if time.monotonic() - last > PATIENCE_S:
                raise PipelineError(
                    f"following TrainJob {name}: no answer for {PATIENCE_S:.0f} s ({error}). The "
                    "job goes on; another try of this step finds it."
                ) from error
            time.sleep(PAUSE_S)
            continue
        last = time.monotonic()
        shown = _show(client, name, job, shown)
        if job is None or job.status == "Complete":
            if figures.is_file():
                return
            raise TrainingError(
                f"TrainJob {name} is {'gone' if job is None else 'complete'} and has left no "
                f"{figures}: expected it on the cache volume, which all nodes and this pod must "
                "share (ReadWriteMany). If somebody deleted the job, start the step again."
            )
        if job.status == "Failed":
            raise TrainingError(
                f"TrainJob {name} failed. What its first node said last stands above; the rest: "
                f"kubectl logs --selector jobset.sigs.k8s.io/jobset-name={name} --prefix"
            )
        time.sleep(PAUSE_S)


def _show(client: Any, name: str, job: Any, shown: int) -> int:
    """Print the lines of the first node that are new; return how many there are.

    A log that cannot be read, which is told once, does not end a training.
    """
    if job is None or shown < 0:
        return shown
    try:
        lines = list(client.get_job_logs(name, step=_FIRST))
    except (RuntimeError, TimeoutError) as error:
        _say(f"the log of {_FIRST} cannot be read from here: {error} ({error.__cause__})")
        return -1
    _say(*lines[shown:])
    return max(shown, len(lines))


def _say(*lines: str) -> None:
    sys.stdout.writelines(f"{line}\n" for line in lines)
    sys.stdout.flush()


@contextmanager
def _ended_with_this_process(client: Any, name: str) -> Iterator[None]:
    """Delete the job where this process is asked to end: nodes would go on for nobody."""

    def end(number: int, _: Any) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except (SystemExit, KeyboardInterrupt):
        if _asked(f"looking for {name}", lambda: _find(client, name)) is not None:
            _asked(f"removing {name}", lambda: client.delete_job(name))
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
