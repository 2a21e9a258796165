"""How do time and memory grow with the pool?

Writes synthetic sources of several sizes (four tasks with 60, 25, 10 and 5 % of the rows, words of
Zipf's law), runs download_data, bm25_candidates and dense search on each, every one in a process of
its own, and prints seconds and the largest resident memory, how they grow, and what that makes of
6.3 million examples, the paper's pool:

    python benchmarks/scale.py                                # 10 thousand, 100 thousand, 1 million
    python benchmarks/scale.py --sizes 10000,100000           # a quick look
    python benchmarks/scale.py --steps search --approximate   # with the approximate index
    python benchmarks/scale.py --folder SCRATCH               # keeps sources and outputs there

Search takes random unit vectors of 384 dimensions in place of an encoder's, because embedding a
million texts is the encoder's time and not the search's.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from exemplar import steps
from exemplar.config import Profile, load_params
from exemplar.data.dataset import read_dataset
from exemplar.data.io import write_records
from exemplar.records import Candidates

PROJECT = Path(__file__).parent.parent
SHARES = {"first": 0.6, "second": 0.25, "third": 0.1, "fourth": 0.05}
STEPS = ("download_data", "bm25_candidates", "search")
QUERIES = 250  # training queries a task, and test queries a task
PAPER = 6_300_000
DIMENSION = 384
APPROXIMATE_ABOVE = 50_000
TASK = """{name}:
  category: synthetic
  kind: classification
  metric: accuracy
  description: A task of the scale benchmark
  query: "Text: {{text}}"
  label: label
  labels: [good, bad]
"""


def write_source(folder: Path, size: int) -> None:
    """Write `size` training rows and the test rows of all tasks, about 30 words a row."""
    draw = np.random.default_rng(size)
    words = np.array([f"w{number:x}" for number in range(200_000)])
    folder.mkdir(parents=True)
    for task, share in SHARES.items():
        (folder / task).mkdir()
        for split, rows in (("train", int(size * share)), ("test", QUERIES)):
            with (folder / task / f"{split}.jsonl").open("w", encoding="utf-8") as file:
                for start in range(0, rows, 10_000):
                    count = min(10_000, rows - start)
                    lengths = draw.integers(10, 50, count)
                    ranks = np.minimum(draw.zipf(1.2, lengths.sum()), len(words)) - 1
                    texts = np.split(words[ranks], np.cumsum(lengths)[:-1])
                    labels = draw.choice(["good", "bad"], count)
                    for text, label in zip(texts, labels, strict=True):
                        row = {"text": " ".join(text), "label": str(label)}
                        file.write(json.dumps(row) + "\n")
    entries = "\n".join(TASK.format(name=task) for task in SHARES)
    (folder / "tasks.yaml").write_text(entries, encoding="utf-8")


class RandomEncoder:
    """Random unit vectors in place of an encoder's, the same ones at every run."""

    def __init__(self) -> None:
        self._draw = np.random.default_rng(0)

    def encode(self, texts: Collection[str], *, progress: str | None = None) -> np.ndarray:
        """Return one vector a text; equal texts do not get equal ones."""
        embeddings_ND = self._draw.standard_normal((len(texts), DIMENSION), dtype=np.float32)
        embeddings_ND /= np.linalg.norm(embeddings_ND, axis=1, keepdims=True)
        return embeddings_ND


def profile(folder: Path) -> Profile:
    """Return the demo's settings for a source in `folder`, its whole pool and 100 candidates."""
    demo = load_params(PROJECT / "params.yaml").profiles["demo"]
    source = {
        "source": "local",
        "path": str(folder / "source"),
        "max_pool": None,
        "max_train": QUERIES,
        "max_test": QUERIES,
    }
    return demo.model_copy(
        update={
            "download_data": demo.download_data.model_copy(update=source),
            "bm25_candidates": demo.bm25_candidates.model_copy(update={"num_candidates": 100}),
        }
    )


def run_step(step: str, folder: Path, approximate: bool) -> None:
    """Run one step in this process and print its seconds."""
    start = time.perf_counter()
    if step == "download_data":
        steps.download_data(profile(folder), data=folder / "data")
    elif step == "bm25_candidates":
        steps.bm25_candidates(
            profile(folder), data=folder / "data", out=folder / "candidates.parquet"
        )
    else:
        search(folder, approximate)
    print(time.perf_counter() - start)


def search(folder: Path, approximate: bool) -> None:
    """Index the pool and search it for 100 candidates of every training query."""
    from exemplar.retrieval.dense import dense_candidates
    from exemplar.retrieval.pool_index import PoolIndex

    dataset = read_dataset(folder / "data")
    encoder = RandomEncoder()
    above = APPROXIMATE_ABOVE if approximate else None
    index = PoolIndex.build(dataset.pool, encoder, approximate_above=above)
    found = dense_candidates(dataset.train, index, encoder, k=100)
    for task, recall in found.recall.items():
        print(f"recall of {task}: {recall:.3f}", file=sys.stderr)
    write_records(folder / "found.parquet", Candidates, found, made_from=dataset.made_from())


def measure(step: str, folder: Path, approximate: bool) -> tuple[float, float]:
    """Run a step in a child process; return its seconds and its largest memory in MiB."""
    command = [sys.executable, __file__, "--run", step, "--folder", str(folder)]
    command += ["--approximate"] * approximate
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    seconds = float(child.stdout.read().split()[-1])
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{step} failed with exit code {child.returncode}")
    return seconds, usage.ru_maxrss / 1024


def report(step: str, folder: Path, sizes: list[int], approximate: bool) -> Iterator[str]:
    """Yield a line a size, then what the line through the two largest makes of the paper's pool."""
    seen: list[tuple[int, float, float]] = []
    for size in sizes:
        place = folder / str(size)
        if not (place / "source").exists():
            write_source(place / "source", size)
        seconds, memory = measure(step, place, approximate)
        line = f"{step:16s} {size:9,d} {seconds:8.1f} s {memory:7.0f} MiB"
        if seen:
            before, before_seconds, _ = seen[-1]
            allowed = size * math.log(size) / (before * math.log(before))
            line += f"   time x{seconds / before_seconds:.1f} (n log n: x{allowed:.1f})"
        seen.append((size, seconds, memory))
        yield line
    if len(seen) > 1:
        (low, low_s, low_m), (high, high_s, high_m) = seen[-2:]
        scale = (PAPER - high) / (high - low)
        yield (
            f"{step:16s} {PAPER:9,d} {high_s + scale * (high_s - low_s):8.1f} s "
            f"{high_m + scale * (high_m - low_m):7.0f} MiB   projected; "
            f"{(high_m - low_m) * 2**20 / (high - low):,.0f} bytes an example"
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="10000,100000,1000000", help="rows, by commas")
    parser.add_argument("--steps", default=",".join(STEPS), help="by commas")
    parser.add_argument("--folder", type=Path, help="scratch folder that is kept")
    parser.add_argument("--approximate", action="store_true", help="search by the IVF index")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run_step(options.run, options.folder, options.approximate)
        return
    sizes = [int(size) for size in options.sizes.split(",")]
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        for step in options.steps.split(","):
            for line in report(step, folder, sizes, options.approximate):
                print(line, flush=True)


if __name__ == "__main__":
    main()
