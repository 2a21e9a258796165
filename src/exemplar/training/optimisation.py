"""The mechanics that both trainings share: what is trained, how fast, in which type, how padded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from exemplar import seeding
from exemplar.devices import computes_bfloat16
from exemplar.errors import TrainingError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def resolve_dtype(name: str, device: torch.device) -> str:
    """Return the type to compute in; "auto" is bfloat16 where the device has units for it.

    Elsewhere bfloat16 is emulated and slower than float32. Weights, optimizer and losses are
    float32 in any case. Raises `TrainingError` on another name.
    """
    if name in _DTYPES:
        return name
    if name != "auto":
        raise TrainingError(
            f"expected dtype auto, float32 or bfloat16 for training, got {name!r}. float16 would "
            "need loss scaling, which is not offered."
        )
    return "bfloat16" if computes_bfloat16(device) else "float32"


def autocast(device: torch.device, dtype: str) -> torch.autocast:
    """Return the context of a forward pass in `dtype`."""
    return torch.autocast(device.type, dtype=_DTYPES[dtype], enabled=dtype != "float32")


def tokens_of_a_pass(device: torch.device) -> int:
    """Return how many tokens, with padding, go through a model at once: a CPU's cache is small."""
    return 2048 if device.type == "cpu" else 8192


def use_fast_attention(model: Any, device: torch.device) -> None:
    """Let a transformers model attend in the way that is fastest on `device` for short texts.

    On a CPU these are plain products: the fused attention's backward pass takes several times as
    long there (torch 2.13), which made a training of MiniLM a third slower.
    """
    if device.type == "cpu":
        model.set_attn_implementation("eager")


def learning_rate_at(update: int, *, peak: float, warmup: int, num_updates: int) -> float:
    """Return the learning rate of update 0, 1, ..., `num_updates` - 1.

    It rises in equal steps to `peak` over `warmup` updates and falls in equal steps to 0 at
    `num_updates`. Update 0 already moves the weights, so that short runs waste none.
    """
    if update < warmup:
        return peak * (update + 1) / (warmup + 1)
    return peak * (num_updates - update) / (num_updates - warmup)


def make_optimizer(model: nn.Module, weight_decay: float) -> torch.optim.AdamW:
    """Return AdamW over what is trained; vectors (biases, norms) are not decayed."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [w for w in trained if w.dim() > 1], "weight_decay": weight_decay},
        {"params": [w for w in trained if w.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], fused=True)


def freeze_lower(model: Any, num_layers: int) -> None:
    """Stop the embeddings and the lowest `num_layers` layers from training; 0 freezes nothing.

    What is frozen needs no backward pass and no optimizer state. Raises `TrainingError` where the
    model has not so many layers, or is built in a way unknown here.
    """
    if num_layers == 0:
        return
    base = getattr(model, "base_model", model)
    stack = getattr(base, "encoder", None) or getattr(base, "transformer", None)
    layers = getattr(stack, "layer", None)
    if layers is None or not hasattr(base, "embeddings"):
        raise TrainingError(
            f"freeze_layers is {num_layers}, but {type(base).__name__} has no list of layers that "
            "is known here (BERT, RoBERTa, ELECTRA, MPNet, DistilBERT have). Set freeze_layers: 0."
        )
    if not 0 < num_layers < len(layers):
        raise TrainingError(
            f"freeze_layers is {num_layers}; expected 0 to {len(layers) - 1}, for the model has "
            f"{len(layers)} layers and at least one must learn."
        )
    for module in (base.embeddings, *layers[:num_layers]):
        module.requires_grad_(False)


def prepare(model: Any, dropout: float, freeze_layers: int, gradient_checkpointing: bool) -> None:
    """Make a transformers model ready to train (`set_dropout`, `freeze_lower`, fast attention).

    `gradient_checkpointing` computes activations twice instead of keeping them: about a third
    slower, for batches of paper size on one GPU.
    """
    set_dropout(model, dropout)
    freeze_lower(model, freeze_layers)
    use_fast_attention(model, next(model.parameters()).device)
    if gradient_checkpointing:
        # transformers 5 renamed it; transformers 4 knows the old name alone.
        new_name = getattr(model, "activation_checkpointing_enable", None)
        (new_name or model.gradient_checkpointing_enable)()


def set_dropout(model: nn.Module, dropout: float) -> None:
    """Set every dropout of a model, attention included, leaving its config as it is."""
    if not 0 <= dropout < 1:
        raise TrainingError(f"expected dropout from 0 up to, not including, 1; got {dropout}.")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
        for name, value in vars(module).items():  # attention classes that keep a bare number
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, dropout)


def length_batches(
    lengths: Sequence[int], batch_tokens: int, *, max_padding: float = 1.0
) -> list[list[int]]:
    """Group positions by length, so that a padded batch holds at most `batch_tokens` tokens.

    A text of more than `batch_tokens` is a batch of its own. `max_padding`: a batch ends where its
    longest text would be more than (1 + max_padding) times as long as its shortest.
    """
    batches: list[list[int]] = []
    for position in sorted(range(len(lengths)), key=lengths.__getitem__):
        length = lengths[position]
        fits = batches and (len(batches[-1]) + 1) * length <= batch_tokens
        if not fits or length > (1 + max_padding) * lengths[batches[-1][0]]:
            batches.append([])
        batches[-1].append(position)
    return batches


@contextmanager
def seeded(*parts: object) -> Iterator[None]:
    """Let torch draw from `derive_seed(*parts)`; the state outside stays as it was.

    Dropout and fresh weights draw from torch's global generators: this is how they stay
    reproducible without moving anybody else's draws.
    """
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seeding.derive_seed(*parts))
        yield


def check_settings(
    num_updates: int, learning_rate: float, warmup: int, clip: float, eval_every: int
) -> None:
    """Raise `TrainingError` naming every setting of the loop that cannot be."""
    settings = (
        ("num_updates", num_updates, "1 or more", num_updates >= 1),
        ("learning_rate", learning_rate, "above 0", learning_rate > 0),
        ("warmup", warmup, f"0 to {num_updates - 1}", 0 <= warmup < num_updates),
        ("clip", clip, "above 0", clip > 0),
        ("eval_every", eval_every, "1 or more", eval_every >= 1),
    )
    wrong = [f"{name} is {got} (expected {wanted})" for name, got, wanted, ok in settings if not ok]
    if wrong:
        raise TrainingError(f"training cannot start: {'; '.join(wrong)}. Mend them and run again.")
