"""How much goes through the model at once: what fits into the memory that is free.

The estimate leans to the safe side and may still be wrong, for attention differs between
architectures and others use the same memory; so whoever runs a batch is ready to halve it.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import psutil
import torch

from exemplar.errors import ModelError

logger = logging.getLogger(__name__)

_MOST_TOKENS = 1 << 16  # more at once fill no processor better
_SHARE = 0.6  # of the free memory; the rest is for logits, masks and what the allocator wastes
_CGROUP = Path("/sys/fs/cgroup")


def batch_tokens(model: Any, free_bytes: int, *, max_length: int) -> int:
    """Return how many tokens may be in one batch: from one whole sequence up to 65,536.

    A token costs its keys and values in every layer, which generation keeps, and one layer's
    activations: about eight vectors of the hidden size and three of the feed-forward size.
    """
    config = model.config.get_text_config()
    hidden, layers = int(config.hidden_size), int(config.num_hidden_layers)
    heads = int(config.num_attention_heads)
    key_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    head_size = int(getattr(config, "head_dim", None) or hidden // heads)
    inner = int(getattr(config, "intermediate_size", None) or 4 * hidden)
    numbers = 2 * layers * key_heads * head_size + 8 * hidden + 3 * inner
    fitting = int(_SHARE * free_bytes) // (numbers * int(model.dtype.itemsize))
    return max(max_length, min(fitting, _MOST_TOKENS))


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free on a device; in a container, within the container's limit."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min(int(psutil.virtual_memory().available), _free_in_cgroup(_CGROUP))


def _free_in_cgroup(folder: Path) -> int:
    """Return what a control group (version 2) leaves its processes; file cache counts as free."""
    try:
        limit = int((folder / "memory.max").read_text())
        used = int((folder / "memory.current").read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no limit ("max"), no such group, another version
        return 1 << 62
    return max(0, limit - used + int(stat.get("inactive_file", 0)))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed; on a CPU torch says so in words alone."""
    told = "can't allocate memory" in str(error) or "not enough memory" in str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or told


def too_large(name: str, tokens: int) -> ModelError:
    """Return the error of a model whose memory does not hold even one sequence."""
    return ModelError(
        f"model {name!r}: one sequence of {tokens} tokens does not fit into memory. "
        "Lower lm.max_length, take a smaller model, or a device with more memory."
    )


def give_back(device: torch.device, tokens: int) -> None:
    """Release what the allocator keeps after a batch that was too large, and say so."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    logger.warning("%d tokens were too many for the memory; going on with half", tokens)
