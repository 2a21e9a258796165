"""A LlamaIndex retriever whose nodes are demonstrations, for prompts with dynamic examples.

Example::

    retriever = ExemplarRetriever(Retriever.load("models:/exemplar-retriever@champion"), k=4)
    nodes = retriever.retrieve("The kettle came with a cracked lid.")
"""

from __future__ import annotations

from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from exemplar.serving import Filters, Retriever


class ExemplarRetriever(BaseRetriever):  # type: ignore[misc]
    """Returns demonstrations as nodes, the most similar first, as LlamaIndex expects.

    A node's text is the demonstration as it is shown (query, line break, answer); its metadata hold
    `task`, `query`, `answer` and `group`, its id is the example's.
    """

    def __init__(
        self,
        retriever: Retriever,
        *,
        k: int | None = None,
        task: str | None = None,
        filters: Filters | None = None,
    ):
        super().__init__()
        self.retriever = retriever
        self.k = k
        self.task = task
        self.filters = filters or Filters()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        query = query_bundle.query_str
        found = self.retriever.select(query, task=self.task, k=self.k, filters=self.filters)
        return [
            NodeWithScore(
                node=TextNode(
                    id_=item.example.example_id,
                    text=item.example.text,
                    metadata={
                        "task": item.example.task,
                        "query": item.example.query,
                        "answer": item.example.answer,
                        "group": item.example.group,
                    },
                ),
                score=item.similarity,
            )
            for item in found
        ]
