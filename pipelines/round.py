"""The pipeline `round`: one round, from BM25's candidates or from a retriever in the registry.

For runs without an end: a schedule sends it again and again, each time from the champion. It trains
on its own round's rewards; those of other runs are not among its inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kfp import dsl

from exemplar.kubeflow.plan import Plan
from pipelines.graph import Graph

NAME = "exemplar-round"


def build(plan: Plan, settings: Mapping[str, Any]) -> None:
    """Make all tasks. `settings` has `registered` among them if `plan.retriever` names one."""
    graph = Graph(plan, settings)
    with dsl.ExitHandler(graph.closing(), name="exemplar"):
        data = graph.data(NAME)
        candidates = (
            graph.registered(data, settings["registered"]) if plan.retriever else graph.bm25(data)
        )
        graph.round(plan.number, data=data, candidates=candidates, earlier=graph.baselines(data))
