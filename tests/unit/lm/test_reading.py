"""Claims about memory: what goes through the model at once is bounded, and shrinks when it must."""

import pytest
import torch

from exemplar.errors import ModelError
from exemplar.lm.reading import PackReader

# Shared beginnings, lonely ones, a long one; every sequence is read from its third token on.
SEQUENCES = [
    *([5, 6, 7, 8 + i, 9, 10 + i] for i in range(12)),
    *([20 + i, 6, 7, 8] for i in range(12)),
    [40 + i for i in range(24)],
]
STARTS = [2] * len(SEQUENCES)


class Watched(PackReader):
    """Keeps the size of each batch, and has no memory for more than `limit` tokens."""

    limit = 10**9
    error: Exception = torch.OutOfMemoryError("out of memory")

    def __init__(self, model, *, masks=False, **options):
        super().__init__(model, name="tiny", **options)
        assert self.by_pieces
        if masks:
            self.use_masks()
        self.batches, self.refused = [], []

    def forward(self, packs, nodes, cache=None):
        lengths = [len(pack.tokens) for pack in packs]
        size = sum(lengths) if self.by_pieces else len(lengths) * max(lengths)
        if size > self.limit:
            self.refused.append(size)
            raise self.error
        self.batches.append((size, sum(map(len, nodes))))
        return super().forward(packs, nodes, cache)


@pytest.fixture
def model(tiny_model):
    return tiny_model("Llama").eval()


def read_all(reader):
    """Return the logits of every sequence."""
    found = {}
    for read in reader.read(SEQUENCES, STARTS):
        for member, rows in zip(read.pack.members, read.rows, strict=True):
            assert member not in found
            found[member] = read.logits[rows]
    assert len(found) == len(SEQUENCES)
    return [found[member] for member in range(len(SEQUENCES))]


@pytest.fixture
def expected(model):
    return read_all(Watched(model, batch_tokens=4096))


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("batch_tokens", [24, 40, 100])
def test_no_batch_is_larger_than_the_budget(model, expected, batch_tokens, masks):
    """The budget is the user's only handle on memory: padding must count too."""
    reader = Watched(model, batch_tokens=batch_tokens, masks=masks)
    found = read_all(reader)
    assert max(size for size, _ in reader.batches) <= batch_tokens
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_the_logits_of_a_batch_are_bounded_for_a_large_vocabulary(tiny_model):
    """A vocabulary of a quarter million makes logits larger than all else together."""
    vocabulary = 1 << 21
    reader = Watched(tiny_model("Llama", vocab_size=vocabulary), batch_tokens=4096)
    for _ in reader.read(SEQUENCES[12:20], [3] * 8):
        pass
    assert max(4 * vocabulary * reads for _, reads in reader.batches) <= 1 << 28
    assert len(reader.batches) < 8, "as many as fit go together"


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("limit", [24, 30, 60])
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate ..."),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "python"],
)
def test_out_of_memory_halves_the_budget_and_goes_on(model, expected, limit, error, masks):
    """A scoring of days must not end because one batch was larger than all before."""
    reader = Watched(model, batch_tokens=4096, masks=masks)
    reader.limit, reader.error = limit, error
    found = read_all(reader)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    assert reader.refused, "the limit was never met: the test shows nothing"
    first_time = len(reader.refused)
    assert first_time <= 6
    read_all(reader)
    assert len(reader.refused) <= first_time + 3, "what it learned must hold for what follows"


def test_one_sequence_that_does_not_fit_is_one_clear_error(model):
    """Halving for ever would hang instead of telling."""
    reader = Watched(model, batch_tokens=4096)
    reader.limit = 10
    with pytest.raises(ModelError, match="one sequence of 24 tokens does not fit into memory"):
        read_all(reader)


def test_another_error_of_the_model_is_not_taken_for_a_lack_of_memory(model):
    """It would be tried again and again in smaller pieces, and its cause lost."""
    reader = Watched(model, batch_tokens=4096)
    reader.limit, reader.error = 0, RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        read_all(reader)
