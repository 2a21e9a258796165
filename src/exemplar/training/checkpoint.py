"""The state of a training, on disk: where a killed training continues."""

from __future__ import annotations

import hashlib
import logging
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from exemplar.data.io import atomic_path
from exemplar.errors import TrainingError

logger = logging.getLogger(__name__)


@dataclass
class State:
    """All that changes in a training besides model and optimizer.

    `update`: updates done. `window`: rows not yet averaged into `history`. `best_weights` are on
    the CPU.
    """

    update: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    window: list[dict[str, float]] = field(default_factory=list)
    before: dict[str, float] = field(default_factory=dict)
    best_update: int = 0
    best_figures: dict[str, float] = field(default_factory=dict)
    best_weights: dict[str, Tensor] = field(default_factory=dict)


def identity_of(*parts: object) -> str:
    """Return the sha256 of the parts' texts: what tells one training from another."""
    digest = hashlib.sha256()

    def take(part: object) -> None:
        if isinstance(part, list | tuple) and part:  # one by one: there may be millions of records
            digest.update(f"{type(part).__name__} of {len(part)}\n".encode())
            for inner in part:
                take(inner)
        else:
            digest.update(f"{part!r}\n".encode())

    take(parts)
    return digest.hexdigest()


def save(
    path: Path, identity: str, model: nn.Module, optimizer: torch.optim.Optimizer, state: State
) -> None:
    """Write a checkpoint, whole or not at all."""
    content = {
        "identity": identity,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "state": vars(state),
    }
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


def read(path: Path | None, identity: str) -> dict[str, Any] | None:
    """Return what `save` wrote; None where there is no checkpoint of this `identity`.

    One of another identity (other settings or other data) is of no use and is left aside: the
    first save replaces it. Raises `TrainingError` on a file that is no checkpoint.
    """
    if path is None or not path.exists():
        return None
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        found = content["identity"]
    except (RuntimeError, EOFError, OSError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise TrainingError(
            f"{path} is not a readable checkpoint ({type(error).__name__}: {error}). Delete it; "
            "training then starts anew."
        ) from error
    if found != identity:
        logger.info("%s belongs to a training with other settings or data: starting anew", path)
        return None
    logger.info("%s: continuing after update %d", path, content["state"]["update"])
    return content


def restore(
    content: Mapping[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer
) -> State:
    """Put what `read` returned into model and optimizer, and return the rest."""
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    return State(**content["state"])
