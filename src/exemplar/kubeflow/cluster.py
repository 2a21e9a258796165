"""What each step's pod gets on a cluster: the values of infra/kubernetes/profile.yaml, checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError, model_validator

from exemplar.config import explain
from exemplar.errors import ConfigError
from exemplar.settings import Count, Positive, Section

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


class Together(Section):
    """Several machines that train one model together, as a TrainJob of Kubeflow Trainer.

    `hardware`: the name of what each of them is; `runtime`: the TrainingRuntime, or
    ClusterTrainingRuntime, that they are made from.
    """

    count: Annotated[int, Field(ge=2)]
    hardware: str
    runtime: str = "torch-distributed"


class Hardware(Section):
    """One kind of machine. `trainings`: where trainings run instead, if not on one of these."""

    cpu: Amount
    memory: Amount
    accelerator: Accelerator | None = None
    shared_memory: str | None = None
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: list[Toleration] = Field(default_factory=list)
    image_suffix: str = ""
    trainings: Together | None = None


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
        for name, hardware in self.hardware.items():
            each = hardware.trainings and hardware.trainings.hardware
            if each is not None and each not in self.hardware:
                raise ValueError(f"hardware.{name}.trainings: {each!r} is not among the hardware")
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
