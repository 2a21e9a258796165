"""The engine against a plain computation: one sequence at a time, no cache, no packing."""

from __future__ import annotations

import random

import pytest
import torch

from exemplar.errors import ModelError, PromptError
from exemplar.lm.loading import project_in_float32
from exemplar.lm.transformers import TransformersLM

CANDIDATES = [
    "Review: a warm, funny film\nIs it good or bad?\ngood",
    "Review: dull and far too long\nIs it good or bad?\nbad",
    "The café by the river serves naïve crêpes 🦒🦒\nYes",
    "no",
]
QUERIES = ["Review: naïve 🦒\nIs it good or bad?", "Is it far?", "Review: a warm, funny film"]
ANSWERS = ["good", "bad", "Yes, but no.", "crêpes 🦒 graze\tby the river ", "🦒"]
PAIRS = [
    (f"{candidate}\n\n{query}\n", answer)
    for candidate in CANDIDATES
    for query in QUERIES
    for answer in ANSWERS
]


@pytest.fixture(scope="module")
def make_lm(tiny_tokenizer, tiny_model):
    def make(architecture="Llama", *, bos=False, max_length=200, batch_tokens=150, **changes):
        return TransformersLM(
            tiny_model(architecture, **changes),
            tiny_tokenizer(bos=bos),
            name="tiny",
            max_length=max_length,
            batch_tokens=batch_tokens,
        )

    return make


@pytest.fixture(scope="module")
def lm(make_lm):
    return make_lm()


def plain_logits(lm, tokens):
    with torch.inference_mode():
        return lm.model(torch.tensor([tokens])).logits[0].double()


def plain_logprob(lm, prompt, answer, *, bos=False):
    """The answer's tokens are those that, decoded up to, reach beyond the prompt's bytes."""
    tokens = lm.tokenizer(prompt + answer, add_special_tokens=False)["input_ids"]
    pieces = [bytes_of(lm.tokenizer, token) for token in tokens]
    reach = [sum(map(len, pieces[: i + 1])) for i in range(len(tokens))]
    count = sum(end > len(prompt.encode()) for end in reach)
    tokens = [lm.tokenizer.bos_token_id, *tokens] if bos else tokens
    logprobs = plain_logits(lm, tokens[-lm.max_length :]).log_softmax(-1)
    targets = tokens[-lm.max_length :][-count:]
    return sum(float(logprobs[-count - 1 + i, t]) for i, t in enumerate(targets)) / count


def bytes_of(tokenizer, token):
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    back = {char: byte for byte, char in bytes_to_unicode().items()}
    return bytes(back[char] for char in tokenizer.convert_ids_to_tokens(token))


@pytest.mark.parametrize(
    "architecture",
    ["Llama", "GPT2", "GPTNeoX", "Qwen2", "Qwen3", "Gemma", "Gemma2", "Mistral", "GPTNeo"],
)
def test_packed_logprobs_equal_those_of_each_sequence_alone(make_lm, architecture):
    """Packing is a saving, not an approximation: the retriever is trained on these numbers."""
    lm = make_lm(architecture)
    pairs = PAIRS[:45:2]
    found = lm.logprobs(*zip(*pairs, strict=True))
    expected = [plain_logprob(lm, prompt, answer) for prompt, answer in pairs]
    assert found == pytest.approx(expected, abs=1e-4)
    assert max(found) - min(found) > 0.5  # the comparison would see a mix-up
    assert lm.stats.sequences == len(pairs)
    assert lm.stats.share_saved > 0.3


def test_scores_do_not_depend_on_order_company_or_row_length(make_lm, lm):
    """Shards and reruns must give the same scores, whatever else they hold."""
    expected = dict(zip(PAIRS, lm.logprobs(*zip(*PAIRS, strict=True)), strict=True))
    shuffled = random.Random(1).sample(PAIRS, 20) * 2
    for batch_tokens in (1, 64, 4096):
        other = make_lm(batch_tokens=batch_tokens)
        found = other.logprobs(*zip(*shuffled, strict=True))
        assert found == pytest.approx([expected[pair] for pair in shuffled], abs=1e-4)


def test_equal_pairs_are_computed_once(make_lm):
    """Pools repeat examples; paying for each copy wastes the scarcest resource."""
    once, twice = make_lm(), make_lm()
    once.logprobs(*zip(*PAIRS[:10], strict=True))
    found = twice.logprobs(*zip(*(PAIRS[:10] * 3), strict=True))
    assert twice.stats.tokens_computed == once.stats.tokens_computed
    assert twice.stats.tokens_given == 3 * once.stats.tokens_given
    assert found[:10] == found[10:20] == found[20:]


def test_a_tokenizer_that_opens_texts_with_a_token_keeps_it(make_lm):
    """Llama-like models score badly without their beginning-of-text token; others never had one."""
    lm = make_lm(bos=True)
    found = lm.logprobs(*zip(*PAIRS[:12], strict=True))
    assert found == pytest.approx([plain_logprob(lm, *p, bos=True) for p in PAIRS[:12]], abs=1e-4)
    assert lm.count_tokens("good") == 1 + len(lm.tokenizer.tokenize("good"))


def test_a_long_prompt_loses_its_left_end_and_never_the_answer(make_lm):
    """A cut answer would get the probability of another text, unnoticed."""
    lm = make_lm(max_length=24)
    pairs = [(prompt * 2, answer) for prompt, answer in PAIRS[:10]]
    found = lm.logprobs(*zip(*pairs, strict=True))
    assert found == pytest.approx([plain_logprob(lm, *pair) for pair in pairs], abs=1e-4)


@pytest.mark.parametrize(
    ("prompt", "answer", "message"),
    [
        ("a\n", "", "item 1: the answer is empty"),
        ("a\n", " \n", "item 1: the answer is empty"),
        ("", "good", "item 1: the prompt is empty"),
        ("a\n", "graze " * 40, "item 1: its answer has .* tokens.*max_length = 20"),
    ],
)
def test_what_cannot_be_scored_is_refused_by_index_before_anything_is_computed(
    make_lm, prompt, answer, message
):
    """An error after hours of scoring loses the hours; one without an index cannot be mended."""
    lm = make_lm(max_length=20)
    with pytest.raises(PromptError, match=message):
        lm.logprobs(["x\n", prompt], ["good", answer])
    assert lm.stats.tokens_computed == 0


@pytest.mark.parametrize("call", ["logprobs", "labels", "free"])
def test_nan_is_an_error_and_no_score(make_lm, call):
    """A NaN would sort anywhere among the candidates and train the retriever on noise."""
    lm = make_lm()
    with torch.no_grad():
        lm.model.get_output_embeddings().weight[5] = float("nan")
    calls = {
        "logprobs": lambda: lm.logprobs(["a\n"], ["good"]),
        "labels": lambda: lm.generate(["a\n"], labels=["good", "bad"]),
        "free": lambda: lm.generate(["a\n"], 4),
    }
    with pytest.raises(ModelError, match="NaN"):
        calls[call]()


def plain_label(lm, prompt, labels):
    """Walk token by token, running the model on the prefix alone each time."""
    sequences = {
        label: lm.tokenizer(prompt + label, add_special_tokens=False)["input_ids"]
        for label in labels
    }
    ends = [lm.tokenizer.eos_token_id]
    for text in ("\n", "\n\n"):
        tokens = lm.tokenizer(text)["input_ids"]
        ends += tokens if len(tokens) == 1 else []
    prefix = []
    while True:
        fitting = {k: v for k, v in sequences.items() if v[: len(prefix)] == prefix}
        if len(fitting) == 1:
            return next(iter(fitting))
        options = {}
        logits = plain_logits(lm, prefix) if prefix else None
        for label, tokens in fitting.items():
            if tokens == prefix:
                options[label] = max(float(logits[-1, end]) for end in ends)
            else:
                options[tokens[len(prefix)]] = (
                    float(logits[-1, tokens[len(prefix)]]) if prefix else 0.0
                )
        best = max(options, key=lambda option: options[option])
        if isinstance(best, str):
            return best
        prefix = [*prefix, best]


@pytest.mark.parametrize(
    "labels",
    [
        ["good", "bad"],
        ["World", "Sports", "Business", "Technology"],
        ["Yes", "Yes, but", "Yes, but no", "No", "Yesterday"],
        ["🦒", "🦒🦒", "é"],
    ],
)
def test_labels_are_decoded_greedily_token_by_token(make_lm, labels):
    """Scoring whole labels instead favours long ones: it is another method with other figures."""
    lm = make_lm()
    prompts = [f"{i} {prompt}" for i, (prompt, _) in enumerate(PAIRS[::5])]
    found = lm.generate(prompts, labels=labels)
    assert found == [plain_label(lm, prompt, labels) for prompt in prompts]
    assert len(set(found)) > 1


def test_labels_that_part_at_once_cost_one_pass_over_the_prompt(make_lm):
    """Each label's own copy of an eight-shot prompt would multiply the cost by their number."""
    lm = make_lm()
    prompt = PAIRS[0][0]
    lm.generate([prompt], labels=["good", "bad", "Maybe"])
    assert lm.stats.tokens_computed == lm.count_tokens(prompt)


def plain_line(lm, prompt, max_new_tokens):
    tokens = lm.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    new = []
    for _ in range(max_new_tokens):
        logits = plain_logits(lm, tokens + new)[-1]
        for token in logits.argsort(descending=True).tolist():
            text = lm.tokenizer.decode([token], skip_special_tokens=True)
            if new or not ("\n" in text and not text.split("\n")[0].strip()):
                break
        if token == lm.tokenizer.eos_token_id:
            break
        new.append(token)
        if "\n" in text:
            break
    return lm.tokenizer.decode(new, skip_special_tokens=True).split("\n")[0].strip()


@pytest.mark.parametrize("architecture", ["Llama", "GPT2", "Qwen2"])
def test_a_line_equals_one_decoded_alone_without_padding_or_cache(make_lm, architecture):
    """Left padding and dropped rows go wrong quietly, in the answers of the shorter prompts."""
    lm = make_lm(architecture, batch_tokens=400)
    stop = lm.tokenizer("\n")["input_ids"][0]
    head = lm.model.get_output_embeddings()
    prompts = [f"{i} {prompt}" for i, (prompt, _) in enumerate(PAIRS[::12])] + ["a\n", "a\n"]
    for factor in (1.0, 1.5):  # the second makes newlines frequent, so that rows end early
        with torch.no_grad():
            head.weight[stop] *= factor
        found = lm.generate(prompts, 8)
        assert found == [plain_line(lm, prompt, 8) for prompt in prompts]


def test_a_line_is_never_empty_for_a_model_that_loves_newlines(make_lm):
    """A model that opens with a newline would answer nothing at all."""
    lm = make_lm()
    stop, second = (lm.tokenizer(text)["input_ids"][0] for text in ("\n", "a"))
    head = torch.nn.Linear(32, 320)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()
        head.bias[stop], head.bias[second] = 2.0, 1.0
    lm.model.set_output_embeddings(head)
    assert lm.generate(["Is it far?\n"], 8) == [lm.tokenizer.decode([second])]


def test_a_prompt_without_room_for_its_answer_is_refused_by_index(make_lm):
    """The answer would be cut, or the model run past its position limit."""
    lm = make_lm(max_length=30)
    with pytest.raises(PromptError, match=r"item 1: its prompt has .* expected 1 to 20"):
        lm.generate(["a\n", "graze " * 30 + "\n"], 10)
    with pytest.raises(PromptError, match="item 1"):
        lm.generate(["a\n", "graze " * 30 + "\n"], labels=["good", "bad"])
    with pytest.raises(PromptError, match="none of them empty"):
        lm.generate(["a\n"], labels=["good", ""])


def test_the_projection_stays_in_float32_under_a_bfloat16_model(make_lm):
    """bfloat16 logits around 20 come in steps of 1/8: candidates would tie at random."""
    exact, half = make_lm(), make_lm()
    half.model.bfloat16()
    project_in_float32(half.model)
    found = half.logprobs(*zip(*PAIRS[:20], strict=True))
    assert found == pytest.approx(exact.logprobs(*zip(*PAIRS[:20], strict=True)), abs=0.2)
    logits = half.model(torch.tensor([[5, 6, 7]])).logits
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())
