r"""A LangChain example selector: FewShotPromptTemplate and its chat sibling take it as it is.

Example::

    selector = ExemplarSelector(Retriever.load("models:/exemplar-retriever@champion"), k=4)
    prompt = FewShotPromptTemplate(
        example_selector=selector,
        example_prompt=PromptTemplate.from_template("{query}\n{answer}"),
        suffix="{query}\n",
        input_variables=["query"],
    )
"""

from __future__ import annotations

from langchain_core.example_selectors import BaseExampleSelector

from exemplar.errors import ConfigError
from exemplar.serving import Filters, Retriever


class ExemplarSelector(BaseExampleSelector):  # type: ignore[misc]
    """Chooses examples for the input variable `query_key`, the nearest last.

    Each is a mapping of `query_key` and `answer_key` to its texts, with `task`, `example_id` and
    `similarity` beside them.
    """

    def __init__(
        self,
        retriever: Retriever,
        *,
        k: int | None = None,
        task: str | None = None,
        filters: Filters | None = None,
        query_key: str = "query",
        answer_key: str = "answer",
    ):
        self.retriever = retriever
        self.k = k
        self.task = task
        self.filters = filters or Filters()
        self.query_key = query_key
        self.answer_key = answer_key

    def select_examples(self, input_variables: dict[str, str]) -> list[dict[str, object]]:
        """Return the examples for the given variables. Raises what `Retriever.select` does."""
        if self.query_key not in input_variables:
            raise ConfigError(
                f"The input variables are {', '.join(input_variables) or 'none'}; expected "
                f"{self.query_key!r} among them. Name the one to search by with query_key."
            )
        query = input_variables[self.query_key]
        found = self.retriever.select(query, task=self.task, k=self.k, filters=self.filters)
        return [
            {
                self.query_key: item.example.query,
                self.answer_key: item.example.answer,
                "task": item.example.task,
                "example_id": item.example.example_id,
                "similarity": item.similarity,
            }
            for item in reversed(found.demonstrations)
        ]

    def add_example(self, example: dict[str, str]) -> None:
        """Refuse: the pool belongs to a version of the retriever."""
        raise ConfigError(
            "A retriever's pool is fixed with its version. Add the example to the data and run a "
            "round, or build a Retriever over another pool."
        )
