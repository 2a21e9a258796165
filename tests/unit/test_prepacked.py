"""Weights laid out for oneDNN give the products that PyTorch's own layout gives."""

from __future__ import annotations

import platform

import pytest
import torch
from torch import nn

from exemplar.devices import computes_bfloat16
from exemplar.prepacked import PrepackedLinear, prepack

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available(),
    reason="oneDNN's layout is used on x86 processors alone",
)


DTYPES = [torch.float32, *([torch.bfloat16] if computes_bfloat16(torch.device("cpu")) else [])]


def model_of(architecture, **shape):
    """Return a random model with 2 layers of width 32."""
    import transformers

    config = getattr(transformers, f"{architecture}Config")(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, **shape
    )
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [(1, 1), (1, 7), (3, 65), (1, 1024)])
@torch.inference_mode()
def test_a_product_is_that_of_the_plain_layer(dtype, bias, rows):
    """Any number of rows: decoding has one, packs have a thousand."""
    linear = nn.Linear(48, 33, bias=bias, dtype=dtype)
    inputs = torch.randn(*rows, 48, dtype=dtype)
    prepacked = PrepackedLinear(linear)
    assert torch.equal(prepacked.weight, linear.weight)
    torch.testing.assert_close(prepacked(inputs), linear(inputs))


@pytest.mark.parametrize("dtype", DTYPES)
@torch.inference_mode()
def test_under_autocast_it_computes_what_the_plain_layer_does(dtype):
    """Encoders keep float32 weights and compute in bfloat16."""
    linear, inputs = nn.Linear(48, 33), torch.randn(5, 48)
    prepacked = PrepackedLinear(linear, dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype != torch.float32):
        expected, found = linear(inputs), prepacked(inputs)
    assert found.dtype == expected.dtype == dtype
    torch.testing.assert_close(found, expected)


@torch.inference_mode()
def test_rows_that_lie_apart_are_read_where_they_lie():
    """A layer is given what attention transposed."""
    linear = nn.Linear(48, 33)
    inputs = torch.randn(2, 48, 5).transpose(1, 2)
    assert not inputs.is_contiguous()
    torch.testing.assert_close(PrepackedLinear(linear)(inputs), linear(inputs))


@pytest.mark.parametrize(
    ("architecture", "layers"), [("Llama", 14), ("GPTNeoX", 8), ("Gemma2", 14), ("GPT2", 0)]
)
def test_every_linear_layer_but_the_projection_is_laid_out(architecture, layers):
    """GPT-2 has layers of a class of its own; the projection shares the embedding's weight."""
    model = model_of(architecture)
    head = model.get_output_embeddings()
    assert prepack(model) == layers
    assert model.get_output_embeddings() is head
    assert prepack(model) == 0


def test_a_layer_used_in_two_places_is_laid_out_once():
    """Shared layers would otherwise take their memory twice."""
    model = model_of("Llama")
    first, second = model.model.layers
    second.mlp = first.mlp
    assert prepack(model) == 11
    assert second.mlp.up_proj is first.mlp.up_proj


def test_no_weight_is_held_twice():
    """A model that fills half of the memory must still load."""
    model = model_of("Llama")
    plain = model.model.layers[0].mlp.up_proj
    prepack(model)
    assert plain.weight is None


def test_what_the_processor_cannot_multiply_stays():
    """Half precision on a CPU is refused by oneDNN, or emulated."""
    model = model_of("Llama").to(torch.float16)
    assert prepack(model) == 0


def test_a_model_that_was_laid_out_is_not_saved(tmp_path):
    """A folder without those weights would load with random ones."""
    model = model_of("Llama")
    prepack(model)
    with pytest.raises(RuntimeError, match="save the model as it was loaded"):
        model.save_pretrained(tmp_path)
