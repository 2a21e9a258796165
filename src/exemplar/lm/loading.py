"""From a model reference to a checked `TransformersLM`."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from exemplar.devices import computes_bfloat16, default_device
from exemplar.errors import ConfigError, ModelError
from exemplar.lm import memory
from exemplar.lm.exactness import check_packing
from exemplar.lm.gguf import converted
from exemplar.lm.transformers import TransformersLM
from exemplar.models import cache_folder, resolve, transformers_alone
from exemplar.prepacked import prepack

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Names under which architectures of transformers keep the width of windowed attention, in tokens.
_WINDOWS = ("sliding_window", "attention_chunk_size", "window_size", "local_attention")


def load(
    ref: str,
    dtype: str = "auto",
    *,
    max_length: int = 1024,
    batch_tokens: int | None = None,
    cache_dir: Path | None = None,
) -> TransformersLM:
    """Load the model that `ref` leads to; see `exemplar.lm.load`."""
    device = default_device()
    precision = choose_dtype(dtype, device)
    path = resolve(ref)
    with transformers_alone():
        if Path(path).is_file():
            path = str(converted(Path(path), precision, cache_dir or cache_folder()))
        model, tokenizer = _open(ref, path, precision)
    refuse_inexact(ref, model.config, max_length)
    model = model.to(device)
    prepack(model)
    if precision != torch.float32:
        project_in_float32(model)
    if batch_tokens is None:
        batch_tokens = memory.batch_tokens(model, memory.free_memory(device), max_length=max_length)
    lm = TransformersLM(
        model, tokenizer, name=ref, max_length=max_length, batch_tokens=batch_tokens
    )
    check_packing(lm)
    return lm


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the torch dtype; "auto" is bfloat16 where the processor computes in it."""
    if dtype == "auto":
        return torch.bfloat16 if computes_bfloat16(device) else torch.float32
    if dtype not in _DTYPES:
        raise ConfigError(f"dtype {dtype!r} is unknown; choose auto, {', '.join(_DTYPES)}.")
    return _DTYPES[dtype]


def refuse_inexact(ref: str, config: Any, max_length: int) -> None:
    """Raise where attention depends on more than the set of ancestors and their depths.

    Windowed attention and position scaling that changes with length are exact only while no
    sequence reaches the window; the rest is measured by `exactness.check_packing`.
    """
    config = config.get_text_config()
    limits = {"its position limit": getattr(config, "max_position_embeddings", None)}
    if getattr(config, "use_sliding_window", True):
        limits |= {f"its {name}": getattr(config, name, None) for name in _WINDOWS}
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if rope.get("rope_type") in ("dynamic", "longrope"):
        original = rope.get("original_max_position_embeddings")
        limits["the length from which its rotary embedding is rescaled"] = original
    for what, limit in limits.items():
        if isinstance(limit, int) and 0 < limit < max_length:
            raise ModelError(
                f"model {ref!r}: max_length is {max_length} tokens but {what} is {limit}. Beyond "
                f"that its scores would be wrong. Set max_length to at most {limit}."
            )


def _open(ref: str, path: str, dtype: torch.dtype) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if Path(path).is_dir() and not (Path(path) / "config.json").is_file():
        raise ModelError(
            f"model {ref!r} does not load as a causal language model: its folder holds no "
            "config.json. Expected a folder or hub id with config.json, weights and a tokenizer."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model, info = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, output_loading_info=True
        )
    except (ValueError, OSError, KeyError, ImportError) as error:
        raise ModelError(
            f"model {ref!r} does not load as a causal language model: {error}\n"
            "Expected a folder or hub id with config.json, weights and a tokenizer, or a GGUF "
            "file. Check the reference; for a hub id also the network and your access."
        ) from error
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"model {ref!r} is no causal language model: its weights lack {', '.join(missing[:3])}"
            f"{' and more' if len(missing) > 3 else ''}, which would be random numbers. Give a "
            "model made for text generation; encoders such as BERT or MiniLM cannot score text."
        )
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"model {ref!r}: its tokenizer reports no character offsets, so the answer's tokens "
            "cannot be told from the prompt's. Give a model with a tokenizer.json (a fast one)."
        )
    return model, tokenizer


def project_in_float32(model: Any) -> None:
    """Give the model a vocabulary projection in float32.

    Logits of 20 to 40 are rounded to multiples of 1/8 in bfloat16: too coarse for differences
    between candidates. The copy costs vocabulary x width x 4 bytes.
    """
    head = copy.deepcopy(model.get_output_embeddings()).float()
    head.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
    model.set_output_embeddings(head)
