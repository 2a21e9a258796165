"""Tiny random models and a tokenizer for the tests of the language-model engine."""

from __future__ import annotations

from typing import Any

import pytest

TEXT = (
    "Review: a warm, funny film\nIs it good or bad?\ngood\n\nReview: dull and far too long\n"
    "Is it good or bad?\nbad\n\nThe café by the river serves naïve crêpes; 3 giraffes graze 🦒.\n"
    "Yes, but no. Maybe not. World Sports Business Technology\n"
)


def make_tokenizer(*, bos: bool = False) -> Any:
    """Return a byte-level tokenizer of 320 tokens, trained on `TEXT`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    fast = Tokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    fast.train_from_iterator([TEXT] * 3, trainer)
    fast.post_processor = (
        processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
        if bos
        else processors.ByteLevel(trim_offsets=True)
    )
    return PreTrainedTokenizerFast(tokenizer_object=fast, bos_token="<s>", eos_token="</s>")


def make_config(architecture: str, **changes: Any) -> Any:
    """Return the configuration of a model with 2 layers of width 32."""
    import transformers

    shape: dict[str, Any] = {
        "vocab_size": 320,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": None,
    }
    if architecture in ("Llama", "Qwen2", "Qwen3", "Mistral", "Gemma", "Gemma2"):
        shape |= {"num_key_value_heads": 2, "intermediate_size": 48}
    if architecture in ("Qwen3", "Gemma", "Gemma2"):
        shape |= {"head_dim": 8}
    if architecture in ("Mistral", "Gemma2"):
        shape |= {"sliding_window": 256}
    if architecture == "GPTNeoX":
        shape |= {"intermediate_size": 48, "use_parallel_residual": True}
    if architecture == "GPTNeo":
        shape |= {"attention_types": [[["global", "local"], 1]], "window_size": 128}
        shape = shape | {"num_layers": 2, "num_heads": 4}
        del shape["num_hidden_layers"], shape["num_attention_heads"]
    if architecture == "GPT2":
        shape["n_positions"] = shape.pop("max_position_embeddings")
    return getattr(transformers, f"{architecture}Config")(**(shape | changes))


def make_model(architecture: str, **changes: Any) -> Any:
    """Return a random model whose predictions differ clearly from token to token."""
    import torch
    from transformers import AutoModelForCausalLM

    generator = torch.Generator().manual_seed(7)
    built = AutoModelForCausalLM.from_config(make_config(architecture, **changes)).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3, generator=generator)
    return built


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """Return the factory of tokenizers."""
    return make_tokenizer


@pytest.fixture(scope="session")
def tiny_model() -> Any:
    """Return the factory of models."""
    return make_model
