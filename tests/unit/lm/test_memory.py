"""Claims about the memory that a batch may take: chosen from what is free, halved when wrong."""

import pytest
import torch

from exemplar.errors import ModelError
from exemplar.lm import memory
from exemplar.lm.decoding import LineDecoder
from exemplar.lm.transformers import TransformersLM

PROMPTS = [f"{'far ' * n}is it?\n" for n in range(1, 13)]


@pytest.fixture
def make_lm(tiny_model, tiny_tokenizer):
    def make(batch_tokens):
        return TransformersLM(
            tiny_model("Llama"),
            tiny_tokenizer(),
            name="tiny",
            max_length=200,
            batch_tokens=batch_tokens,
        )

    return make


@pytest.fixture
def cramped(monkeypatch):
    """Let decoding fail for batches of more than `limit` rows, as a full memory does."""
    sizes = []

    def limit_to(limit, error):
        real = LineDecoder.lines

        def lines(self, members, prompts, max_new_tokens):
            sizes.append(len(prompts))
            if len(prompts) > limit:
                raise error
            return real(self, members, prompts, max_new_tokens)

        monkeypatch.setattr(LineDecoder, "lines", lines)
        return sizes

    return limit_to


def test_twice_the_free_memory_allows_twice_the_tokens(tiny_model):
    """A budget that does not follow the memory wastes a large card and breaks a small one."""
    model = tiny_model("Llama")  # 2 layers x 2 x 2 heads of 8, 8 x 32, 3 x 48; float32
    token_bytes = 4 * (2 * 2 * 2 * 8 + 8 * 32 + 3 * 48)
    assert memory.batch_tokens(model, 10_000 * token_bytes, max_length=200) == 6_000
    assert memory.batch_tokens(model, 20_000 * token_bytes, max_length=200) == 12_000
    assert memory.batch_tokens(model.bfloat16(), 10_000 * token_bytes, max_length=200) == 12_000


def test_the_budget_holds_one_sequence_at_least_and_no_more_than_helps(tiny_model):
    """Nothing at all would score nothing; millions of tokens fill no processor better."""
    assert memory.batch_tokens(tiny_model("GPT2"), 0, max_length=200) == 200
    assert memory.batch_tokens(tiny_model("GPT2"), 1 << 50, max_length=200) == 65_536


def test_a_container_with_less_memory_than_its_host_is_believed(tmp_path):
    """In a pod the host's free memory is not ours: using it gets the process killed."""
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 150\n")
    assert memory._free_in_cgroup(tmp_path) == 450
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._free_in_cgroup(tmp_path) > 1 << 50
    assert memory._free_in_cgroup(tmp_path / "none") > 1 << 50
    assert 0 < memory.free_memory(torch.device("cpu")) < 1 << 50


def test_decoding_halves_its_batches_when_memory_runs_out(make_lm, cramped):
    """An evaluation of hours must not end because one batch was larger than all before."""
    expected = make_lm(4096).generate(PROMPTS, 6)
    sizes = cramped(4, torch.OutOfMemoryError("CUDA out of memory"))
    lm = make_lm(4096)
    assert lm.generate(PROMPTS, 6) == expected
    assert sizes[0] == len(PROMPTS), "the limit was never met: the test shows nothing"
    tried = len(sizes)
    lm.generate(PROMPTS, 6)
    assert max(sizes[tried:]) <= 4, "what it learned must hold for what follows"


def test_one_prompt_that_does_not_fit_is_one_clear_error(make_lm, cramped):
    """Halving for ever would hang instead of telling."""
    cramped(0, MemoryError())
    with pytest.raises(ModelError, match=r"one sequence of \d+ tokens does not fit into memory"):
        make_lm(4096).generate(PROMPTS, 6)


def test_another_error_of_decoding_is_not_taken_for_a_lack_of_memory(make_lm, cramped):
    """It would be tried again and again in smaller pieces, and its cause lost."""
    cramped(0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        make_lm(4096).generate(PROMPTS, 6)
