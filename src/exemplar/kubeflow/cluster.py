"""What each step's pod gets on a cluster: read from one file, applied to the tasks here alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, ValidationError, model_validator

from exemplar.config import explain
from exemplar.errors import ConfigError
from exemplar.settings import Count, Positive, Section

if TYPE_CHECKING:
    from kfp import dsl

LIGHT = "light"
"""The hardware of steps without a model."""


class Amount(Section):
    """What a pod asks for, and the most that it may take."""

    request: str
    limit: str


class Accelerator(Section):
    """GPUs of a pod, by the name of their resource."""

    type: str
    count: Count


class Toleration(Section):
    """A taint of nodes that a pod bears."""

    key: str
    operator: str = "Exists"
    effect: str = "NoSchedule"
    value: str | None = None


class Hardware(Section):
    """One kind of machine."""

    cpu: Amount
    memory: Amount
    accelerator: Accelerator | None = None
    shared_memory: str | None = None
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: list[Toleration] = Field(default_factory=list)
    image_suffix: str = ""


class Step(Section):
    """What holds for one step, on any hardware."""

    model: bool = False
    timeout_hours: Count
    retries: Annotated[int, Field(ge=0)] = 0
    secrets: list[str] = Field(default_factory=list)


class Backoff(Section):
    """The pause before another try."""

    seconds: Count
    factor: Positive
    most_seconds: Count


class Cache(Section):
    """The volume that outlives the pods."""

    claim: str
    path: str


class Security(Section):
    """Whom a pod runs as; never root."""

    user: Count
    group: Count


class Cluster(Section):
    """The whole of infra/kubernetes/profile.yaml."""

    hardware: dict[str, Hardware]
    steps: dict[str, Step]
    backoff: Backoff
    secrets: dict[str, list[str]]
    cache: Cache
    security: Security
    image_pull_policy: str
    image_pull_secrets: list[str]
    labels: dict[str, str]

    @model_validator(mode="after")
    def _names_are_known(self) -> Cluster:
        if LIGHT not in self.hardware:
            raise ValueError(f"hardware has no {LIGHT!r}, for the steps without a model")
        for name, step in self.steps.items():
            for secret in step.secrets:
                if secret not in self.secrets:
                    raise ValueError(f"steps.{name}: {secret!r} is not among the secrets")
        return self


def load_cluster(path: Path) -> Cluster:
    """Read and check the file. Raises `ConfigError` that names each wrong key with its place."""
    import yaml

    try:
        return Cluster.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ConfigError(
            f"{path} does not exist. Run from the project's root, or give --cluster."
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    except ValidationError as error:
        raise ConfigError(f"{path}:\n{explain(error, Cluster)}") from None


class Placement:
    """Sets the image and the pod of every task that a pipeline makes."""

    def __init__(self, cluster: Cluster, *, image: str, hardware: str):
        if hardware not in cluster.hardware:
            known = ", ".join(cluster.hardware)
            raise ConfigError(f"--hardware {hardware!r} is unknown; expected one of {known}.")
        self._cluster, self._image, self._hardware = cluster, image, hardware

    def place(self, task: dsl.PipelineTask, step: str, *, light: bool = False) -> None:
        """Give a task what its step gets. `light`: it only puts together what others made."""
        if step not in self._cluster.steps:
            raise ConfigError(f"the cluster's settings have no step {step!r} (steps.{step}).")
        own = self._cluster.steps[step]
        name = self._hardware if own.model and not light else LIGHT
        hardware = self._cluster.hardware[name]
        task.set_container_image(self._image + hardware.image_suffix)
        _resources(task, hardware)
        if own.retries:
            backoff = self._cluster.backoff
            task.set_retry(
                num_retries=own.retries,
                backoff_duration=f"{backoff.seconds}s",
                backoff_factor=backoff.factor,
                backoff_max_duration=f"{backoff.most_seconds}s",
            )
        self._pod(task, step, own)

    def _pod(self, task: Any, step: str, own: Step) -> None:
        from kfp import kubernetes

        cluster = self._cluster
        kubernetes.set_timeout(task, own.timeout_hours * 3600)
        kubernetes.set_image_pull_policy(task, cluster.image_pull_policy)
        if cluster.image_pull_secrets:
            kubernetes.set_image_pull_secrets(task, cluster.image_pull_secrets)
        kubernetes.mount_pvc(task, pvc_name=cluster.cache.claim, mount_path=cluster.cache.path)
        kubernetes.set_security_context(
            task,
            run_as_user=cluster.security.user,
            run_as_group=cluster.security.group,
            run_as_non_root=True,
        )
        for secret in own.secrets:
            for key in cluster.secrets[secret]:
                kubernetes.use_secret_as_env(task, secret, {key: key}, optional=True)
        for key, value in {**cluster.labels, "app.kubernetes.io/component": step}.items():
            kubernetes.add_pod_label(task, key, value)


def _resources(task: Any, hardware: Hardware) -> None:
    from kfp import kubernetes

    task.set_cpu_request(hardware.cpu.request).set_cpu_limit(hardware.cpu.limit)
    task.set_memory_request(hardware.memory.request).set_memory_limit(hardware.memory.limit)
    if hardware.accelerator:
        task.set_accelerator_type(hardware.accelerator.type)
        task.set_accelerator_limit(hardware.accelerator.count)
    if hardware.shared_memory:
        kubernetes.empty_dir_mount(
            task,
            volume_name="shared-memory",
            mount_path="/dev/shm",
            medium="Memory",
            size_limit=hardware.shared_memory,
        )
    for label, value in hardware.node_selector.items():
        kubernetes.add_node_selector(task, label, value)
    for item in hardware.tolerations:
        kubernetes.add_toleration(
            task, key=item.key, operator=item.operator, value=item.value, effect=item.effect
        )
