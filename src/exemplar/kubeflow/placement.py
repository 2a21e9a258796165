"""Gives every task of a pipeline its image and its pod, by the cluster's settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exemplar.errors import ConfigError
from exemplar.kubeflow.cluster import LIGHT, Cluster, Hardware, Step
from exemplar.kubeflow.nodes import Nodes
from exemplar.launch import STEPS as TRAININGS

if TYPE_CHECKING:
    from kfp import dsl


class Placement:
    """Sets the image and the pod of every task that a pipeline makes."""

    def __init__(self, cluster: Cluster, *, image: str, hardware: str):
        if hardware not in cluster.hardware:
            known = ", ".join(cluster.hardware)
            raise ConfigError(f"--hardware {hardware!r} is unknown; expected one of {known}.")
        self._cluster, self._image, self._hardware = cluster, image, hardware

    def nodes(self, step: str) -> Nodes | None:
        """Return the nodes on which a step runs that is started from its pod, or None."""
        together = self._cluster.hardware[self._hardware].trainings
        if together is None or step not in TRAININGS:
            return None
        cluster, own = self._cluster, self._cluster.steps[step]
        hardware = cluster.hardware[together.hardware]
        return Nodes(
            count=together.count,
            runtime=together.runtime,
            image=self._image + hardware.image_suffix,
            hardware=hardware,
            cache=cluster.cache,
            security=cluster.security,
            secrets={name: cluster.secrets[name] for name in own.secrets},
            image_pull_secrets=cluster.image_pull_secrets,
            labels=cluster.labels,
            hours=own.timeout_hours,
        )

    def place(self, task: dsl.PipelineTask, step: str, *, light: bool = False) -> None:
        """Give a task what its step gets.

        `light`: its work is done elsewhere, and it only puts together what others made.
        """
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
