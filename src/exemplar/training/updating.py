"""One update: loss, gradients of all ranks, clipping, the optimizer's step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from exemplar.errors import TrainingError
from exemplar.training.ranks import Ranks


def update_weights(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_at: Callable[[int], Mapping[str, Tensor]],
    update: int,
    *,
    lr: float,
    clip: float,
    ranks: Ranks,
) -> dict[str, float]:
    """Do one update and return its row: loss and parts, learning rate, gradient norm.

    The norm is that of the gradients of all ranks together, so all clip, and step, alike. Raises
    `TrainingError` where loss or gradient is not finite.
    """
    try:
        parts = loss_at(update)
    except TrainingError as error:
        raise TrainingError(f"training stopped at update {update}: {error}") from error
    row = {name: float(value.detach()) for name, value in parts.items()}
    _refuse_divergence(update, "loss", row["loss"])
    parts["loss"].backward()  # type: ignore[no-untyped-call]
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    ranks.sum_gradients(trained)
    norm = float(nn.utils.clip_grad_norm_(trained, clip))
    _refuse_divergence(update, "gradient norm", norm)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad()
    return {**row, "lr": lr, "grad_norm": norm}


def _refuse_divergence(update: int, what: str, value: float) -> None:
    if not math.isfinite(value):
        raise TrainingError(
            f"training stopped at update {update}: the {what} is {value}, and the next update "
            "would spread it into every weight. Lower the learning rate, lengthen the warm-up, or "
            "set dtype: float32."
        )
