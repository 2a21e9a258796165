"""What all pipelines are made of: tasks with their settings and pods, the baselines, a round."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kfp import dsl

from components.bm25_candidates.component import bm25_candidates
from components.download_data.component import download_data
from components.evaluation.component import evaluation
from components.kd_training.component import kd_training
from components.llm_scoring.component import llm_scoring
from components.promotion.component import promotion
from components.report.component import report
from components.reward_scoring.component import reward_scoring
from components.reward_training.component import reward_training
from components.search.component import search
from exemplar.kubeflow.arguments import BASELINES, SECTIONS
from exemplar.kubeflow.plan import Plan
from pipelines.lifecycle import close_run, open_run, start_run

Channel = Any
"""A pipeline parameter, or an output of a task."""

SHARED = {"llm_scoring": "llm_scores", "reward_scoring": "rewards", "evaluation": "outcomes"}
"""Steps whose work is shared out, with the output that holds a share or the whole."""


class Graph:
    """Makes the tasks of one pipeline.

    `settings`: the pipeline's own parameters. A task gets those sections of the settings that its
    component asks for by name.
    """

    def __init__(self, plan: Plan, settings: Mapping[str, Channel]):
        self._plan, self._settings = plan, settings
        self._page: dsl.PipelineTask | None = None  # of the round before

    def task(
        self, component: Callable[..., Any], *, light: bool = False, **inputs: Channel
    ) -> dsl.PipelineTask:
        """Make one task, with its settings and its pod, or pods."""
        asked, step = component.component_spec.inputs, component.name.replace("-", "_")
        own = {name: self._settings[name] for name in (*SECTIONS, BASELINES) if name in asked}
        if nodes := self._plan.placement.nodes(step):
            own["nodes"] = nodes.text()
        made = component(**own, **inputs)
        self._plan.placement.place(made, step, light=light or nodes is not None)
        return made

    def closing(self) -> dsl.PipelineTask:
        """Make the exit task; all others go into an `ExitHandler` of it."""
        return self.task(close_run, pipeline_run=dsl.PIPELINE_JOB_ID_PLACEHOLDER)

    def data(self, name: str) -> Channel:
        """Open the MLflow run, so that a wrong address is found first; then get the data."""
        opened = self.task(open_run, name=name, pipeline_run=dsl.PIPELINE_JOB_ID_PLACEHOLDER)
        opened.set_caching_options(False)  # every run of the pipeline has its own
        return self.task(download_data).after(opened).outputs["data"]

    def bm25(self, data: Channel) -> Channel:
        """Return the first round's candidates."""
        return self.task(bm25_candidates, data=data).outputs["candidates"]

    def registered(self, data: Channel, retriever: Channel) -> Channel:
        """Return candidates from a retriever in the registry."""
        found = self.task(search, data=data, registered=retriever, target="registered")
        found.set_caching_options(False)  # an alias names another version tomorrow
        return found.outputs["next_candidates"]

    def baselines(self, data: Channel) -> Channel:
        """Search and evaluate all baselines side by side; return the run's folder."""
        with dsl.ParallelFor(self._settings[BASELINES], name="baselines") as baseline:
            found = self.task(search, data=data, method=baseline, target=baseline.target)
            judged = self.task(
                evaluation,
                data=data,
                demonstrations=found.outputs["demonstrations"],
                target=baseline.target,
            )
        return self.task(
            start_run,
            demonstrations=dsl.Collected(found.outputs["demonstrations"]),
            evaluations=dsl.Collected(judged.outputs["outcomes"]),
        ).outputs["run"]

    def round(
        self, number: int, *, data: Channel, candidates: Channel, earlier: Channel
    ) -> Mapping[str, Channel]:
        """Make one round, from candidates to the report.

        Returns `next_candidates`, the run's folder `run`, and `promoted`.
        """
        name = {"number": number}
        llm_scores = self._shared(
            llm_scoring, f"scores-{number}", data=data, candidates=candidates, **name
        )
        teacher = self.task(reward_training, data=data, llm_scores=llm_scores, **name)
        reward_model = teacher.outputs["reward_model"]
        rewards = self._shared(
            reward_scoring,
            f"rewards-{number}",
            data=data,
            candidates=candidates,
            reward_model=reward_model,
            **name,
        )
        student = self.task(
            kd_training, data=data, llm_scores=llm_scores, rewards=rewards, earlier=earlier, **name
        )
        retriever = student.outputs["retriever"]
        found = self.task(search, data=data, retriever=retriever, target=f"r{number}")
        outcomes = self._shared(
            evaluation,
            f"outcomes-{number}",
            data=data,
            demonstrations=found.outputs["demonstrations"],
            target=f"r{number}",
        )
        gate = self.task(
            promotion,
            data=data,
            rewards=rewards,
            reward_model=reward_model,
            retriever=retriever,
            demonstrations=found.outputs["demonstrations"],
            index=found.outputs["index"],
            outcomes=outcomes,
            earlier=earlier,
            **name,
        )
        # Its outcome depends on the registry, and it changes the registry.
        gate.set_caching_options(False)
        page = self.task(report, data=data, run=gate.outputs["run"])
        page.set_caching_options(False)
        if self._page is not None:  # each is kept with all rounds in MLflow: the last one stays
            page.after(self._page)
        self._page = page
        return {
            "next_candidates": found.outputs["next_candidates"],
            "run": gate.outputs["run"],
            "promoted": gate.outputs["Output"],
        }

    def _shared(self, component: Callable[..., Any], loop: str, **inputs: Channel) -> Channel:
        """Make one task, or a task a share and one that puts the shares together."""
        output = SHARED[component.name.replace("-", "_")]
        count = self._plan.shards
        if count == 1:
            return self.task(component, **inputs).outputs[output]
        shards = [f"{number}/{count}" for number in range(1, count + 1)]
        with dsl.ParallelFor(shards, name=loop) as shard:
            share = self.task(component, shard=shard, **inputs)
        shares = dsl.Collected(share.outputs[output])
        return self.task(component, light=True, shares=shares, **inputs).outputs[output]
