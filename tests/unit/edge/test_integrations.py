"""Claims about the retriever inside other frameworks, with the real libraries."""

import asyncio

import numpy as np
import pytest

from exemplar.errors import ConfigError
from exemplar.registry.bundle import write_bundle
from exemplar.retrieval.encoder import Encoder
from exemplar.serving import Retriever
from exemplar.serving.query import Filters

QUERY = "is it red"


@pytest.fixture(scope="module")
def retriever(files):
    return Retriever.load(files.retriever, pool=files.pool)


def library(name, extra):
    return pytest.importorskip(name, reason=f"needs pip install 'exemplar[{extra}]'")


def test_a_langchain_prompt_is_the_retriever_s_own(retriever):
    """Another order or layout than the one trained for would lower answers."""
    library("langchain_core", "langchain")
    from langchain_core.prompts import FewShotPromptTemplate, PromptTemplate

    from exemplar.integrations.langchain import ExemplarSelector

    selector = ExemplarSelector(retriever, k=3, task="weather", filters=Filters(answers=("sun",)))
    template = FewShotPromptTemplate(
        example_selector=selector,
        example_prompt=PromptTemplate.from_template("{query}\n{answer}"),
        suffix="{query}\n",
        input_variables=["query"],
    )
    expected = retriever.select(QUERY, k=3, task="weather", filters=Filters(answers=("sun",)))
    assert template.format(query=QUERY) == expected.prompt()
    assert asyncio.run(template.aformat(query=QUERY)) == expected.prompt()
    with pytest.raises(ConfigError, match="The input variables are question; expected 'query'"):
        selector.select_examples({"question": QUERY})
    with pytest.raises(ConfigError, match="fixed with its version"):
        selector.add_example({"query": "a", "answer": "b"})


def test_a_langchain_chat_prompt_has_the_retriever_s_turns(retriever):
    """Chat models read examples as turns."""
    library("langchain_core", "langchain")
    from langchain_core.prompts import ChatPromptTemplate, FewShotChatMessagePromptTemplate

    from exemplar.integrations.langchain import ExemplarSelector

    turns = ChatPromptTemplate.from_messages([("human", "{input}"), ("ai", "{output}")])
    selector = ExemplarSelector(retriever, k=2, query_key="input", answer_key="output")
    shots = FewShotChatMessagePromptTemplate(
        example_selector=selector, example_prompt=turns, input_variables=["input"]
    )
    chat = ChatPromptTemplate.from_messages([shots, ("human", "{input}")])
    found = [(turn.type, turn.content) for turn in chat.format_messages(input=QUERY)]
    expected = retriever.select(QUERY, k=2).messages()
    names = {"user": "human", "assistant": "ai"}
    assert found == [(names[turn["role"]], turn["content"]) for turn in expected]


def test_a_dspy_program_gets_the_examples_of_each_call(retriever):
    """Demonstrations left over from another call, or thread, would mislead."""
    dspy = library("dspy", "dspy")
    from dspy.utils import DummyLM

    from exemplar.integrations.dspy import ExemplarFewShot

    optimizer = ExemplarFewShot(retriever, k=2, query_field="question")
    student = dspy.Predict("question -> answer")
    program = optimizer.compile(student)
    lm = DummyLM([{"answer": "red"}, {"answer": "blue"}])
    with dspy.context(lm=lm):
        answers = [program(question=query).answer for query in (QUERY, "a cat is it")]
    assert answers == ["red", "blue"]
    for call, query in zip(lm.history, (QUERY, "a cat is it"), strict=True):
        shown = [turn["content"] for turn in call["messages"] if turn["role"] != "system"]
        expected = [turn["content"] for turn in retriever.select(query, k=2).messages()]
        assert len(shown) == len(expected) == 5
        for mine, theirs in zip(expected, shown, strict=True):
            assert mine in theirs
    assert student.demos == []
    with pytest.raises(ConfigError, match="The program's inputs are query; expected 'question'"):
        optimizer(query=QUERY)


def test_llamaindex_nodes_are_the_demonstrations(retriever):
    """A node of another text than the demonstration's could not be shown to a model."""
    library("llama_index.core", "llamaindex")
    from exemplar.integrations.llamaindex import ExemplarRetriever

    nodes = ExemplarRetriever(retriever, k=3, task="weather").retrieve(QUERY)
    expected = retriever.select(QUERY, k=3, task="weather")
    assert [node.node.text for node in nodes] == [item.example.text for item in expected]
    assert [node.score for node in nodes] == [item.similarity for item in expected]
    assert [node.node.metadata["answer"] for node in nodes] == [d.example.answer for d in expected]


def test_plain_sentence_transformers_opens_the_retriever_of_a_bundle(retriever, files, tmp_path):
    """Whoever wants the embeddings alone needs nothing of this project."""
    sentence_transformers = library("sentence_transformers", "dev")
    write_bundle(tmp_path / "bundle", retriever=files.retriever, pool=files.pool)
    model = sentence_transformers.SentenceTransformer(
        str(tmp_path / "bundle/encoder"), device="cpu"
    )
    texts = ["is it red", "a cat is a dog"]
    mine = Encoder.load(files.retriever, device="cpu").encode(texts)
    np.testing.assert_allclose(model.encode(texts), mine, atol=1e-5)
