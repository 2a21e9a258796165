"""What an evaluation amounts to: metrics.json, and a page of examples for people to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from exemplar.prompts import assemble
from exemplar.records import Example, Outcome
from exemplar.retrieval.ranking import by_task
from exemplar.tasks import metrics

if TYPE_CHECKING:
    from exemplar.tasks.spec import TaskSpec


def summarise(
    outcomes: Sequence[Outcome],
    specs: Mapping[str, TaskSpec],
    queries: Mapping[str, Example],
    *,
    seed: int = 0,
    num_resamples: int = 2000,
) -> dict[str, Any]:
    """Return the content of metrics.json: average, categories and tasks, 0 to 100.

    Each `value` is the mean score over examples (a task) or over tasks (a category, the average),
    with the ends of a 95 % interval from the bootstrap of `evaluation/significance.py`. A task
    also has its metric's own `figures`; `paper_average` is the mean over tasks of their primary
    ones, which differs from the average only where the primary is an F1 over the whole task.
    """
    from exemplar.evaluation.significance import bootstrap_mean

    grouped = _by_task(outcomes)
    scores = {task: [outcome.score for outcome in rows] for task, rows in grouped.items()}
    groups = {task: [outcome.group for outcome in rows] for task, rows in grouped.items()}

    def interval(tasks: Sequence[str]) -> dict[str, float]:
        result = bootstrap_mean(
            {task: scores[task] for task in tasks},
            {task: groups[task] for task in tasks},
            seed=seed,
            num_resamples=num_resamples,
        )
        return {"value": result.value, "low": result.low, "high": result.high}

    tasks = {
        task: {**interval([task]), **_task_facts(rows, specs[task], queries)}
        for task, rows in sorted(grouped.items())
    }
    primaries = [facts["figures"][metrics.primary(facts["metric"])] for facts in tasks.values()]
    categories: dict[str, list[str]] = {}
    for task in tasks:
        categories.setdefault(specs[task].category, []).append(task)
    return {
        "average": interval(sorted(grouped)),
        "paper_average": sum(primaries) / len(primaries),
        "categories": {name: interval(members) for name, members in sorted(categories.items())},
        "tasks": tasks,
    }


def label_agreement(
    queries: Sequence[Example],
    demonstrations: Mapping[str, Sequence[Example]],
    specs: Mapping[str, TaskSpec],
) -> dict[str, float]:
    """Return, for each classification task, the share of demonstrations with the query's label.

    From 0 to 1. A figure without an LM in it: what a retriever has learnt about labels. Tasks
    without any demonstration are left out.
    """
    shares: dict[str, float] = {}
    for task, members in by_task(queries).items():
        if specs[task].kind != "classification":
            continue
        same = [
            demonstration.answer == query.answer
            for query in members
            for demonstration in demonstrations[query.example_id]
        ]
        if same:
            shares[task] = sum(same) / len(same)
    return shares


def examples_markdown(
    outcomes: Sequence[Outcome],
    queries: Mapping[str, Example],
    pool: Mapping[str, Example],
    *,
    per_task: int = 3,
) -> str:
    """Return a page of a few prompts and answers of each task, for people to read.

    `queries` and `pool` map ids to examples. Of each task it shows a right answer and a wrong one
    before others, each the first in order.
    """
    grouped = _by_task(outcomes)
    lines = ["# Examples of prompts and answers", ""]
    for task, rows in grouped.items():
        mean = sum(outcome.score for outcome in rows) / len(rows)
        lines += [f"## {task}", "", f"Mean score {mean:.1f} over {len(rows)} examples.", ""]
        for outcome in _telling(rows, per_task):
            lines += _shown(outcome, queries[outcome.example_id], pool)
    return "\n".join(lines)


def _by_task(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    grouped: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        grouped.setdefault(outcome.task, []).append(outcome)
    return grouped


def _task_facts(
    outcomes: Sequence[Outcome], spec: TaskSpec, queries: Mapping[str, Example]
) -> dict[str, Any]:
    """Return what metrics.json says of a task beside its mean score."""
    figures = metrics.compute(
        spec.metric,
        [outcome.prediction for outcome in outcomes],
        [queries[outcome.example_id].answers for outcome in outcomes],
    )
    return {
        "metric": spec.metric,
        "category": spec.category,
        "held_out": spec.held_out,
        "num_examples": len(outcomes),
        "num_dropped": sum(outcome.num_dropped for outcome in outcomes),
        "figures": figures,
    }


def _telling(outcomes: Sequence[Outcome], most: int) -> list[Outcome]:
    """Return the first fully right outcome, the first that is not, then others in order."""
    right = [outcome for outcome in outcomes if outcome.score == 100]
    wrong = [outcome for outcome in outcomes if outcome.score < 100]
    first = [*right[:1], *wrong[:1]]
    others = [outcome for outcome in outcomes if outcome not in first]
    return [*first, *others][:most]


def _shown(outcome: Outcome, query: Example, pool: Mapping[str, Example]) -> list[str]:
    """Return one example as Markdown; texts are indented, so that nothing in them is markup."""
    demonstrations = [pool[name].text for name in outcome.demonstration_ids]
    prompt = assemble(demonstrations, query.query).rstrip("\n")
    verdict = {100.0: "right", 0.0: "wrong"}.get(outcome.score, f"score {outcome.score:.1f}")
    shots = f"{len(demonstrations)} demonstrations"
    if outcome.num_dropped:
        shots += f", {outcome.num_dropped} more did not fit"
    expected = " | ".join(query.answers)
    lines = [f"### {outcome.example_id}: {verdict}", "", f"Prompt ({shots}):", ""]
    lines += [f"    {line}" for line in prompt.splitlines()]
    lines += ["", "Answer:", "", f"    {outcome.prediction}", "", "Expected:", ""]
    return [*lines, *(f"    {line}" for line in expected.splitlines()), ""]
