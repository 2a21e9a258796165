import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exemplar.errors import TrainingError
from exemplar.training.optimisation import (
    freeze_lower,
    learning_rate_at,
    length_batches,
    make_optimizer,
    resolve_dtype,
    seeded,
    set_dropout,
)


def bert(tiny_bert):
    from transformers import AutoModel

    return AutoModel.from_pretrained(tiny_bert)


def test_the_learning_rate_rises_then_falls_and_wastes_no_update():
    """A first update at rate zero, or a last one, is a forward and backward pass for nothing."""
    rates = [learning_rate_at(u, peak=1.0, warmup=4, num_updates=12) for u in range(12)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[4:] == pytest.approx([1 - i / 8 for i in range(8)])
    assert all(rate > 0 for rate in rates)
    assert learning_rate_at(0, peak=1.0, warmup=0, num_updates=1) == 1.0


def test_biases_and_norms_are_not_decayed():
    """Decayed, they would shrink towards zero without any data saying so."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
    decayed, kept = make_optimizer(model, 0.1).param_groups
    assert [tuple(w.shape) for w in decayed["params"]] == [(3, 3)]
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    assert len(kept["params"]) == 3


def test_freezing_stops_embeddings_and_lower_layers_alone(tiny_bert):
    """One layer too many frozen and the model hardly learns; one too few and time is lost."""
    model = bert(tiny_bert)
    freeze_lower(model, 2)
    frozen = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    expected = ("embeddings.", "encoder.layer.0.", "encoder.layer.1.")
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith(expected)}


@pytest.mark.parametrize("num_layers", [3, 4, -1])
def test_freezing_every_layer_is_refused(tiny_bert, num_layers):
    """Training would run to its end and change nothing."""
    with pytest.raises(TrainingError, match="expected 0 to 2"):
        freeze_lower(bert(tiny_bert), num_layers)


def test_freezing_a_model_without_layers_is_refused():
    """Silently nothing frozen means a third more time than planned."""
    with pytest.raises(TrainingError, match="freeze_layers: 0"):
        freeze_lower(torch.nn.Linear(2, 2), 1)


def test_dropout_reaches_every_layer_and_leaves_the_config(tiny_bert):
    """A dropout left on in attention makes runs that should be equal differ."""
    model = bert(tiny_bert)
    before = model.config.to_dict()
    set_dropout(model, 0.0)
    model.train()
    ids = torch.tensor([[2, 5, 6, 3]])
    first, second = (model(input_ids=ids).last_hidden_state for _ in range(2))
    assert torch.equal(first, second)
    set_dropout(model, 0.5)
    first, second = (model(input_ids=ids).last_hidden_state for _ in range(2))
    assert not torch.equal(first, second)
    assert model.config.to_dict() == before
    with pytest.raises(TrainingError, match="dropout"):
        set_dropout(model, 1.0)


def test_seeded_draws_repeat_and_leave_the_outside_alone():
    """A library that reseeds torch changes the caller's other draws."""
    torch.manual_seed(5)
    undisturbed = torch.rand(2)
    torch.manual_seed(5)
    with seeded(1, "x"):
        first = torch.rand(3)
    with seeded(1, "x"):
        second = torch.rand(3)
    with seeded(2, "x"):
        other = torch.rand(3)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.rand(2), undisturbed)


@given(st.lists(st.integers(1, 60), max_size=40), st.integers(1, 200), st.floats(0.0, 2.0))
def test_length_batches_hold_every_text_once_within_the_bound(lengths, batch_tokens, max_padding):
    """A text left out of every batch would be missing from the result, or shift all others."""
    batches = length_batches(lengths, batch_tokens, max_padding=max_padding)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[i] for i in batch)
        assert len(batch) == 1 or longest * len(batch) <= batch_tokens
        assert longest <= (1 + max_padding) * min(lengths[i] for i in batch)


def test_length_batches_waste_little():
    """Padding costs as much as text."""
    draw = random.Random(0)
    lengths = [draw.randint(5, 60) for _ in range(100)]
    batches = length_batches(lengths, 512)
    padded = sum(max(lengths[i] for i in batch) * len(batch) for batch in batches)
    assert padded < 1.3 * sum(lengths) < len(lengths) * max(lengths)


def test_dtype_names_are_checked_and_auto_is_one_of_them():
    """float16 without loss scaling underflows: training seems to run and stands still."""
    cpu = torch.device("cpu")
    assert resolve_dtype("auto", cpu) in ("float32", "bfloat16")
    assert resolve_dtype("bfloat16", cpu) == "bfloat16"
    with pytest.raises(TrainingError, match="float16"):
        resolve_dtype("float16", cpu)
