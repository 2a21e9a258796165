"""Packed scores equal one-by-one scores on random tries, for every family, however they are cut."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exemplar.lm.transformers import TransformersLM
from exemplar.prepacked import prepack

FAMILIES = ["Llama", "GPT2", "GPTNeoX", "Qwen2", "Qwen3", "Gemma", "Gemma2", "Mistral", "GPTNeo"]
WORDS = ["good", "bad", "Yes", "naïve", "crêpes", "🦒", "film", "\t", "3", "Is it far?", "x\ny"]

texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join)
answers = st.one_of(
    st.sampled_from(["good", "bad", "🦒"]),
    st.lists(st.sampled_from(["graze", "río", "no"]), min_size=1, max_size=18).map(" ".join),
)


@st.composite
def tries(draw):
    """Prompts of a few candidates, or of none, and queries: much, little or nothing shared."""
    candidates = draw(st.lists(st.one_of(texts, st.just("")), min_size=1, max_size=3))
    queries = draw(st.lists(texts, min_size=1, max_size=3))
    pairs = draw(
        st.lists(
            st.tuples(st.sampled_from(candidates), st.sampled_from(queries), answers),
            min_size=1,
            max_size=8,
        )
    )
    return [(f"{c}\n\n{q}\n" if c else f"{q}\n", answer) for c, q, answer in pairs]


@pytest.fixture(scope="module")
def families(tiny_model, tiny_tokenizer):
    """Engines as `load` makes them, each with its model as transformers makes it."""
    plain = {name: tiny_model(name) for name in FAMILIES}
    models = {name: tiny_model(name) for name in FAMILIES}
    for model in models.values():
        prepack(model)

    def build(name, batch_tokens):
        lm = TransformersLM(
            models[name],
            tiny_tokenizer(),
            name=name,
            max_length=200,
            batch_tokens=batch_tokens,
        )
        return lm, plain[name]

    return build


def one_by_one(model, tokenizer, prompt, answer):
    """Score a sequence alone: no packing, no cache, no mask, every logit in float64."""
    whole = tokenizer(prompt + answer, add_special_tokens=False, return_offsets_mapping=True)
    tokens = whole["input_ids"]
    first = next(i for i, (_, end) in enumerate(whole["offset_mapping"]) if end > len(prompt))
    with torch.inference_mode():
        logits = model(torch.tensor([tokens])).logits[0].double()
    logprobs = logits.log_softmax(-1)
    return sum(float(logprobs[i - 1, tokens[i]]) for i in range(first, len(tokens))) / (
        len(tokens) - first
    )


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(pairs=tries(), batch_tokens=st.sampled_from([1, 40, 512]), seed=st.integers(0, 9))
def test_scores_are_those_of_each_sequence_alone(families, family, pairs, batch_tokens, seed):
    """Whatever is shared and however it is cut: the retriever is trained on these numbers."""
    lm, plain = families(family, batch_tokens)
    expected = {pair: one_by_one(plain, lm.tokenizer, *pair) for pair in pairs}
    shuffled = random.Random(seed).sample(pairs, len(pairs))
    for share in (shuffled, shuffled[::2], shuffled[1::2]):
        if share:
            found = lm.logprobs(*zip(*share, strict=True))
            assert found == pytest.approx([expected[pair] for pair in share], abs=1e-4)


@pytest.mark.parametrize("length", [1, 2, 17, 60])
def test_answers_of_every_length_are_read_where_they_begin(families, length):
    """One token early or late scores another text; long answers cross the rows' ends."""
    lm, plain = families("Llama", 70)
    prompts = [f"{word}\n\nIs it far?\n" for word in ("good", "bad", "🦒")]
    answer = "no" + " no" * (length - 1)
    assert len(lm.tokenizer(answer)["input_ids"]) >= length
    found = lm.logprobs(prompts, [answer] * 3)
    expected = [one_by_one(plain, lm.tokenizer, prompt, answer) for prompt in prompts]
    assert found == pytest.approx(expected, abs=1e-4)
