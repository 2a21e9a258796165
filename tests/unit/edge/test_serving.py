"""Claims about selecting demonstrations, against plain numpy, on a tiny random encoder."""

import numpy as np
import pandas as pd
import pytest

from exemplar import bundle, serving
from exemplar.errors import ConfigError, ModelError, PromptError, TaskError
from exemplar.retrieval.encoder import Encoder
from exemplar.serving import Retriever


@pytest.fixture(scope="module")
def retriever(files):
    return Retriever.load(files.retriever, pool=files.pool)


def nearest(files, pool, query, task, k):
    """All similarities in float64, the pool's order among equals."""
    encoder = Encoder.load(files.retriever)
    kept = [
        example
        for example in pool
        if task in (None, example.task)
        and " ".join(example.query.lower().split()) != " ".join(query.lower().split())
    ]
    vectors = encoder.encode([f"{item.query}\n{item.answers[0]}" for item in kept])
    scores = vectors.astype(float) @ encoder.encode([query])[0].astype(float)
    order = np.argsort(-scores.round(6), kind="stable")[:k]
    return [(kept[i].example_id, scores[i]) for i in order]


@pytest.mark.parametrize("task", [None, "weather", "animals"])
@pytest.mark.parametrize("query", ["is it red", "a cat is it", "is it sun a sun"])
def test_select_gives_the_nearest_examples(retriever, files, pool, query, task):
    """Anything but the nearest wastes what the retriever learned."""
    found = retriever.select(query, task=task, k=6)
    expected = nearest(files, pool, query, task, 6)
    assert [item.example.example_id for item in found] == [name for name, _ in expected]
    similarities = [item.similarity for item in found]
    np.testing.assert_allclose(similarities, [value for _, value in expected], atol=2e-6)


@pytest.mark.parametrize("query", ["is it sun a sun", "IS it sun\ta sun "])
def test_a_query_of_the_pool_never_meets_itself(retriever, query):
    """The demonstration would hold the answer."""
    found = retriever.select(query, task="weather", k=53)
    assert len(found) == 51
    assert not [
        item for item in found if item.example.query.lower().split() == query.lower().split()
    ]


def test_many_queries_at_once_get_what_each_gets_alone(retriever):
    """Answers in a batch could belong to another query of it."""
    queries = ["is it red", "a cat", "a dog is blue", "rain"]
    tasks = ["weather", None, "animals", "weather"]
    together = retriever.select_many(queries, tasks, k=3)
    alone = [retriever.select(q, task=t, k=3) for q, t in zip(queries, tasks, strict=True)]
    for a, b in zip(together, alone, strict=True):
        assert a.query == b.query
        assert [item.example for item in a] == [item.example for item in b]
    assert retriever.select_many([], []) == []


def test_the_prompt_shows_the_nearest_last_and_then_the_query(retriever):
    """Models weigh what stands nearest the query most."""
    selection = retriever.select("is it red", k=2)
    near, far = (item.example for item in selection)
    expected = f"{far.query}\n{far.answer}\n\n{near.query}\n{near.answer}\n\nis it red\n"
    assert selection.prompt() == expected


def test_a_budget_drops_the_farthest_whole(retriever):
    """A prompt cut by the model's limit loses its beginning in the middle of an example."""
    selection = retriever.select("is it red", k=3)
    whole = selection.prompt()
    less = selection.prompt(count_tokens=len, budget=len(whole) - 1)
    assert whole.endswith(less)
    assert less.count("\n\n") == 2
    with pytest.raises(PromptError):
        selection.prompt(count_tokens=len, budget=3)


def test_an_unknown_task_names_those_there_are(retriever):
    """Searching everything instead would go unnoticed."""
    with pytest.raises(TaskError, match="Unknown task 'wether': the pool holds animals, weather"):
        retriever.select("is it red", task="wether")


@pytest.mark.parametrize("k", [0, -1, 54, 2.0, True, "4"])
def test_a_k_that_cannot_be_served_is_refused(retriever, k):
    """Fewer demonstrations than asked for would lower answers without a word."""
    with pytest.raises(ConfigError, match="expected a whole number from 1 to 53"):
        retriever.select("is it red", task="weather", k=k)


@pytest.mark.parametrize("query", ["", "  \n", None, 3])
def test_an_empty_query_is_refused(retriever, query):
    """Its nearest neighbours are meaningless."""
    with pytest.raises(ConfigError, match="expected a text"):
        retriever.select(query)


@pytest.mark.parametrize("nothing", [None, float("nan"), ""])
def test_a_row_without_task_searches_the_whole_pool(retriever, nothing):
    """Tables carry missing values in several forms."""
    frame = pd.DataFrame({"query": ["is it red"], "task": [nothing]}, dtype=object)
    answered = serving.answer(retriever, frame, k=3)
    plain = serving.answer(retriever, frame[["query"]], k=3)
    pd.testing.assert_frame_equal(answered, plain)
    expected = retriever.select("is it red", k=3)
    assert answered["prompt"][0] == expected.prompt()
    first = answered["demonstrations"][0][0]
    assert first["similarity"] == expected.demonstrations[0].similarity
    assert first["answer"] == expected.demonstrations[0].example.answer


def test_a_bundle_serves_what_its_parts_do(files, retriever, tmp_path):
    """The registered model would differ from the one that was evaluated."""
    bundle.write_bundle(tmp_path / "bundle", retriever=files.retriever, pool=files.pool)
    bundled = Retriever.load(tmp_path / "bundle")
    assert bundled.tasks == retriever.tasks == ["animals", "weather"]
    assert bundled.select("a hen is it", k=5) == retriever.select("a hen is it", k=5)


def test_an_encoder_without_a_pool_is_refused(files):
    """There would be nothing to choose from."""
    with pytest.raises(ModelError, match="give the pool"):
        Retriever.load(files.retriever)
