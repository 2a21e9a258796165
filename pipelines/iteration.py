"""The pipeline `iteration`: data, baselines, and round after round, each from the one before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kfp import dsl

from exemplar.kubeflow.plan import Plan
from pipelines.graph import Graph

NAME = "exemplar-iteration"


def build(plan: Plan, settings: Mapping[str, Any]) -> None:
    """Make all tasks. Rounds are unrolled: KFP has no loop that carries a result along.

    With `plan.early_stop` a round after a refused one does not start: each stands inside the
    condition of the one before.
    """
    graph = Graph(plan, settings)
    with dsl.ExitHandler(graph.closing(), name="exemplar"):
        data = graph.data(NAME)
        _rounds(graph, plan, 1, data, graph.bm25(data), graph.baselines(data))


def _rounds(
    graph: Graph, plan: Plan, number: int, data: Any, candidates: Any, earlier: Any
) -> None:
    made = graph.round(number, data=data, candidates=candidates, earlier=earlier)
    if number == plan.rounds:
        return
    following = (number + 1, data, made["next_candidates"], made["run"])
    if not plan.early_stop:
        _rounds(graph, plan, *following)
        return
    with dsl.If(made["promoted"] == True, name=f"round-{number + 1}"):  # noqa: E712  a channel
        _rounds(graph, plan, *following)
