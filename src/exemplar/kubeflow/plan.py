"""What is decided when a pipeline is compiled; everything else is a pipeline parameter."""

from __future__ import annotations

from dataclasses import dataclass

from exemplar.errors import ConfigError
from exemplar.kubeflow.placement import Placement


@dataclass(frozen=True)
class Plan:
    """The shape of a pipeline.

    `rounds`: of `iteration`; `number`, `retriever`: of `round`, the latter "" for BM25's candidates
    or models:/NAME@ALIAS. `shards`: processes that share scoring and evaluation out.
    """

    placement: Placement
    rounds: int = 1
    shards: int = 1
    early_stop: bool = False
    number: int = 1
    retriever: str = ""

    def __post_init__(self) -> None:
        if self.retriever and not self.retriever.startswith("models:/"):
            raise ConfigError(
                f"--retriever {self.retriever!r}: expected a model of the registry, "
                "models:/NAME@ALIAS or models:/NAME/VERSION."
            )
