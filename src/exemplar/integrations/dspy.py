"""In DSPy: demonstrations for each call, where KNN and KNNFewShot stand otherwise.

Example::

    optimizer = ExemplarFewShot(retriever, k=4, query_field="question", answer_field="answer")
    program = optimizer.compile(dspy.Predict("question -> answer"))
"""

from __future__ import annotations

import types

import dspy
from dspy.teleprompt import Teleprompter

from exemplar.errors import ConfigError
from exemplar.serving import Filters, Retriever


class ExemplarFewShot(Teleprompter):  # type: ignore[misc]
    """Gives every predictor of a program the examples nearest to its input, anew at each call.

    Called with a program's inputs it returns the examples, the nearest last. Unlike KNNFewShot it
    shows the pool's own answers and bootstraps none, so it calls no language model.
    """

    def __init__(
        self,
        retriever: Retriever,
        *,
        k: int | None = None,
        task: str | None = None,
        filters: Filters | None = None,
        query_field: str = "question",
        answer_field: str = "answer",
    ):
        super().__init__()
        self.retriever = retriever
        self.k = k
        self.task = task
        self.filters = filters or Filters()
        self.query_field = query_field
        self.answer_field = answer_field

    def __call__(self, **inputs: str) -> list[dspy.Example]:
        """Return the examples for a program's inputs. Raises what `Retriever.select` does."""
        if self.query_field not in inputs:
            raise ConfigError(
                f"The program's inputs are {', '.join(inputs) or 'none'}; expected "
                f"{self.query_field!r} among them. Name the one to search by with query_field."
            )
        query = inputs[self.query_field]
        found = self.retriever.select(query, task=self.task, k=self.k, filters=self.filters)
        return [
            dspy.Example(
                **{self.query_field: item.example.query, self.answer_field: item.example.answer}
            ).with_inputs(self.query_field)
            for item in reversed(found.demonstrations)
        ]

    def compile(self, student: dspy.Module) -> dspy.Module:
        """Return a program like `student` that takes its demonstrations from the retriever."""

        def forward(_: dspy.Module, **inputs: str) -> dspy.Prediction:
            program = student.reset_copy()  # its own demonstrations for each call and thread
            examples = self(**inputs)
            for predictor in program.predictors():
                predictor.demos = examples
            return program(**inputs)

        compiled = student.reset_copy()
        compiled.forward = types.MethodType(forward, compiled)
        return compiled
