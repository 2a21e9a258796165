"""bm25s against rank-bm25: do they find the same, and how many queries a second?

Both engines index the same words with the same variant, k1 and b. First their top 100 are compared
on 3,000 examples, then both answer queries over larger pools; bm25s through `bm25_candidates`, as
the step calls it (exclusions and ranking included), rank-bm25 by its own scores alone.

    python benchmarks/bm25.py                            # the sample set's texts, recombined
    python benchmarks/bm25.py --folder FOLDER            # texts of a local source
    python benchmarks/bm25.py --sizes 10000 --queries 20
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from exemplar.data import sources
from exemplar.records import Candidates, Example
from exemplar.retrieval.bm25 import METHODS, bm25_candidates, words
from exemplar.seeding import rng
from exemplar.tasks.spec import load_catalog, select

K = 100
COMPARED = 3000  # examples, all of them pool, a tenth of them queries


def examples(folder: Path | None, size: int) -> list[Example]:
    """Return examples of one task: real ones first, then recombinations of their words."""
    source: sources.Source = "local" if folder else "sample"
    catalog = load_catalog(sources.own_tasks(source, folder))
    specs = select(catalog, sources.available(source, folder, catalog))
    pool = sources.load(source, path=folder, specs=specs, seed=0).pool
    draw = rng(0, "bm25", size)
    draw.shuffle(pool)
    made = [Example(f"e{n}", "all", e.query, e.answers) for n, e in enumerate(pool[:size])]
    return [*made, *islice(recombined(pool), size - len(made))]


def recombined(pool: Sequence[Example]) -> Iterator[Example]:
    """Yield examples whose words are drawn from two examples of the pool."""
    draw = rng(0, "recombined")
    number = len(pool)
    while True:
        one, two = draw.choice(pool).query.split(), draw.choice(pool).query.split()
        both = [draw.choice(pair) for pair in zip(one, two, strict=False)]
        yield Example(f"e{number}", "all", " ".join([*both, f"n{number}"]), ("none",))
        number += 1


def compare(pool: Sequence[Example]) -> None:
    """Print how far the two engines' candidates agree, for each variant that both compute."""
    queries = pool[:: max(1, len(pool) // 300)]
    for method in METHODS["rank-bm25"]:
        ours, theirs = (
            bm25_candidates(queries, pool, k=K + 1, engine=engine, method=method)
            for engine in METHODS
        )
        same = [agree(a, b, method) for a, b in zip(ours, theirs, strict=True)]
        orders = sum(
            a.candidate_ids[:K] == b.candidate_ids[:K] for a, b in zip(ours, theirs, strict=True)
        )
        print(
            f"{method:10s} {len(pool):,} examples, {len(queries)} queries: the same top {K} but "
            f"for ties {sum(same) / len(same):.1%}, in the same order {orders / len(queries):.1%}"
        )


def agree(ours: Candidates, theirs: Candidates, method: str) -> bool:
    """Whether two candidate lists differ by examples of equal score alone."""
    scale = 2.5 if method == "robertson" else 1.0  # rank-bm25 multiplies by k1 + 1
    score = dict(zip(theirs.candidate_ids, theirs.similarities, strict=True))
    cut = theirs.similarities[K - 1]
    close = np.isclose
    values = np.array(ours.similarities[:K]) * scale
    return bool(close(values, theirs.similarities[:K], rtol=1e-4, atol=1e-4).all()) and all(
        name in score or close(value, cut, rtol=1e-4, atol=1e-4)
        for name, value in zip(ours.candidate_ids[:K], values, strict=True)
    )


def speed(pool: Sequence[Example], num_queries: int) -> None:
    """Print seconds to index and queries a second of both engines."""
    import rank_bm25

    queries = pool[:: max(1, len(pool) // num_queries)][:num_queries]
    start = time.perf_counter()
    bm25_candidates(queries[:1], pool, k=K, method="robertson")
    index_s = time.perf_counter() - start
    many = [*queries] * max(1, 2000 // len(queries))
    start = time.perf_counter()
    bm25_candidates(many, pool, k=K, method="robertson")
    ours = len(many) / max(time.perf_counter() - start - index_s, 1e-9)
    start = time.perf_counter()
    engine = rank_bm25.BM25Okapi([words(example.text) for example in pool], epsilon=0.0)
    their_index_s = time.perf_counter() - start
    start = time.perf_counter()
    for query in queries:
        np.argsort(-engine.get_scores(words(query.query)), kind="stable")[:K]
    theirs = len(queries) / (time.perf_counter() - start)
    print(
        f"{len(pool):9,d} examples: bm25s {ours:8.1f} queries/s (index {index_s:.1f} s), rank-bm25 "
        f"{theirs:6.2f} queries/s (index {their_index_s:.1f} s), ratio {ours / theirs:.0f}"
    )


def main() -> None:
    """Print agreement, then speed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="one folder a task; none: the sample set")
    parser.add_argument("--sizes", default="10000,100000", help="pool sizes, by commas")
    parser.add_argument("--queries", type=int, default=100, help="queries that rank-bm25 answers")
    options = parser.parse_args()
    compare(examples(options.folder, COMPARED))
    for size in map(int, options.sizes.split(",")):
        speed(examples(options.folder, size), options.queries)


if __name__ == "__main__":
    main()
