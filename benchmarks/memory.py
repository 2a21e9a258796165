"""Does the memory of LM scoring grow with the number of pairs?

Scores synthetic pairs with a tiny random model through the step itself, once for each number of
pairs, each time in a process of its own, and prints the largest resident memory of each:

    python benchmarks/memory.py                        # 20,000 and 200,000 pairs
    python benchmarks/memory.py --pairs 2000,20000     # a quick look
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from exemplar import steps
from exemplar.allocator import keep_freed_memory
from exemplar.config import Profile, load_params
from exemplar.data.dataset import read_dataset, write_dataset
from exemplar.data.io import write_records
from exemplar.records import Candidates, Example
from exemplar.seeding import rng

POOL = 20_000  # examples of the pool, the same for every number of pairs
CANDIDATES = 20  # of a query
PROJECT = Path(__file__).parent.parent


def save_model(folder: Path) -> None:
    """Save a random Llama of one layer that reads bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(["</s>", *letters])}
    fast = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="</s>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=256,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def write_data(folder: Path, counts: list[int]) -> None:
    """Write a pool of short texts, and for each number of pairs the candidates that make it up."""
    words = [f"w{number}" for number in range(500)]
    draw = rng(0, "memory")
    pool = []
    for number in range(POOL):
        query, answer = " ".join(draw.choices(words, k=6)), draw.choice(["good", "bad"])
        pool.append(Example(f"e{number}", "sst2", query, (answer,)))
    manifest = {"source": "synthetic", "tasks": ["sst2"]}
    write_dataset(folder / "data", pool=pool, train=pool, test=pool[:1], manifest=manifest)
    sealed = read_dataset(folder / "data").made_from()
    names = [example.example_id for example in pool]
    for count in counts:
        records = (
            Candidates(name, tuple(draw.sample(names, CANDIDATES)), (0.0,) * CANDIDATES)
            for name in names[: count // CANDIDATES]
        )
        write_records(folder / f"{count}.parquet", Candidates, records, made_from=sealed)


def profile(folder: Path) -> Profile:
    """Return the demo's settings with the tiny model."""
    demo = load_params(PROJECT / "params.yaml").profiles["demo"]
    lm = demo.lm.model_copy(update={"ref": str(folder / "model"), "max_length": 256})
    scoring = demo.llm_scoring.model_copy(update={"num_candidates": CANDIDATES})
    return demo.model_copy(update={"lm": lm, "llm_scoring": scoring})


def measure(folder: Path, count: int) -> None:
    """Score `count` pairs in this process and print its largest memory, MiB, and the seconds."""
    start = time.perf_counter()
    steps.llm_scoring(
        profile(folder),
        data=folder / "data",
        candidates=folder / f"{count}.parquet",
        out=folder / f"{count}.scores.parquet",
        number=1,
    )
    seconds = time.perf_counter() - start
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, seconds)


def main() -> None:
    """Print one line a number of pairs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", default="20000,200000")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    counts = [int(count) for count in options.pairs.split(",")]
    if options.measure:
        keep_freed_memory()  # as every step does
        measure(options.measure, counts[0])
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_model(folder / "model")
        write_data(folder, counts)
        first = 0.0
        for count in counts:
            command = [sys.executable, __file__, "--measure", name, "--pairs", str(count)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            memory, seconds = map(float, done.stdout.split()[-2:])
            first = first or memory
            print(f"{count:8,d} pairs  {memory:6.0f} MiB  x{memory / first:.2f}  {seconds:5.0f} s")


if __name__ == "__main__":
    main()
