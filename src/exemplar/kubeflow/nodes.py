"""What each node of a training on several nodes gets: one value, from the cluster's settings.

It travels from the compiled pipeline to the pod that starts the training as one JSON text.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, ValidationError

from exemplar.config import explain
from exemplar.errors import ConfigError
from exemplar.kubeflow.cluster import Cache, Hardware, Security
from exemplar.settings import Count, Section


class Nodes(Section):
    """Pods that train one model together, all alike.

    `runtime`: the (Cluster)TrainingRuntime of Kubeflow Trainer that they are made from; `secrets`:
    by name, the keys that become environment variables; `hours`: after which they are ended.
    """

    count: Annotated[int, Field(ge=2)]
    runtime: str
    image: str
    hardware: Hardware
    cache: Cache
    security: Security
    secrets: dict[str, list[str]]
    image_pull_secrets: list[str]
    labels: dict[str, str]
    hours: Count

    @classmethod
    def parse(cls, text: str) -> Nodes:
        """Read what `text()` wrote. Raises `ConfigError` where it is something else."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ConfigError(
                f"nodes: expected what `exemplar pipeline compile` writes:\n{explain(error, cls)}"
            ) from None

    def text(self) -> str:
        """Return the JSON text, without what is not set."""
        return self.model_dump_json(exclude_defaults=True)

    def resources(self) -> dict[str, Any]:
        """Return the resources of one node: the limits, for Trainer asks for what it allows."""
        own: dict[str, Any] = {
            "cpu": self.hardware.cpu.limit,
            "memory": self.hardware.memory.limit,
        }
        if self.hardware.accelerator:
            own[self.hardware.accelerator.type] = self.hardware.accelerator.count
        return own

    def pod(self) -> dict[str, Any]:
        """Return what is patched in the runtime's pod, as fields of the SDK's PodSpecPatch."""
        volumes: list[dict[str, Any]] = [
            {"name": "cache", "persistentVolumeClaim": {"claimName": self.cache.claim}}
        ]
        if self.hardware.shared_memory:
            memory = {"medium": "Memory", "sizeLimit": self.hardware.shared_memory}
            volumes.append({"name": "shared-memory", "emptyDir": memory})
        return {
            "volumes": volumes,
            "security_context": {
                "runAsNonRoot": True,
                "runAsUser": self.security.user,
                "runAsGroup": self.security.group,
                "fsGroup": self.security.group,
            },
            "image_pull_secrets": [{"name": name} for name in self.image_pull_secrets] or None,
            "node_selector": self.hardware.node_selector or None,
            "tolerations": [
                item.model_dump(exclude_none=True) for item in self.hardware.tolerations
            ]
            or None,
        }

    def container(self) -> dict[str, Any]:
        """Return what is patched in its container, as fields of the SDK's ContainerPatch."""
        mounts = [{"name": "cache", "mountPath": self.cache.path}]
        if self.hardware.shared_memory:
            mounts.append({"name": "shared-memory", "mountPath": "/dev/shm"})
        keys = [(secret, key) for secret, keys in self.secrets.items() for key in keys]
        return {
            "volume_mounts": mounts,
            "security_context": {"allowPrivilegeEscalation": False},
            "env": [
                {
                    "name": key,
                    "valueFrom": {"secretKeyRef": {"name": secret, "key": key, "optional": True}},
                }
                for secret, key in keys
            ]
            or None,
        }
