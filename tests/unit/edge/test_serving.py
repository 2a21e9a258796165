"""Claims about selecting demonstrations, against plain numpy, on a tiny random encoder."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from exemplar.errors import ConfigError, ModelError, PromptError, TaskError
from exemplar.records import Example
from exemplar.registry import bundle
from exemplar.registry.bundle import SearchSettings
from exemplar.retrieval.demonstrations import Rules, demonstrations
from exemplar.retrieval.dense import dense_candidates
from exemplar.retrieval.encoder import Encoder
from exemplar.retrieval.pool_index import PoolIndex
from exemplar.serving import Filters, Retriever, answer
from exemplar.serving.query import Query


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
    answered = answer(retriever, frame, k=3)
    plain = answer(retriever, frame[["query"]], k=3)
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


@pytest.mark.parametrize("task", [None, "weather"])
@pytest.mark.parametrize(
    "rules",
    [
        {"mmr_lambda": 0.5},
        {"one_per_group": True},
        {"balance_labels": True},
        {"order": "nearest_first"},
        {"order": "by_label"},
        {"mmr_lambda": 0.7, "one_per_group": True, "balance_labels": True, "num_considered": 12},
    ],
    ids=str,
)
def test_what_is_served_is_what_the_search_chose(grouped, rules, task):
    """The gate judged those demonstrations, not others."""
    settings = SearchSettings(5, rules=Rules(**rules), labelled_tasks=("animals", "weather"))
    served = Retriever(grouped.encoder, grouped.index, settings)
    queries = [
        Example(f"q{n}", task or "weather", query, ("?",))
        for n, query in enumerate(("is it red", "is it sun a sun", "a red hen is", "it"))
    ]
    proposed = dense_candidates(
        queries,
        grouped.index,
        grouped.encoder,
        k=settings.rules.num_candidates(5),
        scope="task" if task else "pool",
    )
    expected = demonstrations(
        proposed,
        grouped.index.pool,
        settings.rules,
        num_shots=5,
        labelled_tasks=settings.labelled_tasks,
    )
    found = served.answer([Query(query.query, task) for query in queries])
    for selection, item in zip(found, expected, strict=True):
        assert tuple(one.example.example_id for one in selection) == item.candidate_ids
    plain = grouped.memory.answer([Query(query.query, task, 5) for query in queries])
    assert [list(one) for one in found] != [list(one) for one in plain]


def test_a_bundle_with_settings_that_nobody_knows_is_refused(files, tmp_path):
    """A rule that is not understood cannot be followed."""
    search = SearchSettings(2, 12, Rules(mmr_lambda=0.5), ("weather",))
    folder = tmp_path / "bundle"
    bundle.write_bundle(folder, retriever=files.retriever, pool=files.pool, search=search)
    assert Retriever.load(folder).settings == search
    content = json.loads((folder / "search.json").read_text())
    for broken in ({**content, "rules": {"new_rule": 1}}, {"num_shots": 4}, []):
        (folder / "search.json").write_text(json.dumps(broken))
        with pytest.raises(ModelError, match="does not hold the settings of a search"):
            Retriever.load(folder)


def test_an_encoder_without_a_pool_is_refused(files):
    """There would be nothing to choose from."""
    with pytest.raises(ModelError, match="give the pool"):
        Retriever.load(files.retriever)


@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        ({"tasks": ("animals",)}, lambda e: e.task == "animals"),
        ({"tasks": ("animals", "weather")}, lambda e: True),
        ({"groups": ("g1",)}, lambda e: e.group == "g1"),
        ({"exclude_groups": ("g1", "")}, lambda e: e.group not in ("g1", "")),
        ({"answers": ("red", "sun")}, lambda e: e.answer in ("red", "sun")),
        ({"exclude_ids": tuple(f"e{n}" for n in range(30))}, lambda e: int(e.example_id[1:]) > 29),
        ({"tasks": ("weather",), "groups": ("g0", "g1"), "answers": ("sun",)},
         lambda e: e.task == "weather" and e.group in ("g0", "g1") and e.answer == "sun"),
        ({"groups": ("nobody",)}, lambda e: False),
    ],
)  # fmt: skip
def test_filters_leave_the_nearest_of_what_they_allow(grouped, filters, kept):
    """A filter applied after the search would give too few, or the wrong ones."""
    ranked = grouped.memory.select("is it red", k=90)
    expected = [item for item in ranked if kept(item.example)][:9]
    for retriever in (grouped.memory, grouped.stored):
        found = retriever.select("is it red", k=9, filters=Filters(**filters))
        assert [item.example for item in found] == [item.example for item in expected]


@pytest.fixture(scope="module")
def grouped(files, pool, tmp_path_factory):
    """A retriever over a pool with groups: as objects in memory, and as stored."""
    examples = [
        Example(f"e{n}", item.task, item.query, item.answers, group=("", "g0", "g1")[n % 3])
        for n, item in enumerate(pool)
    ]
    encoder = Encoder.load(files.retriever)
    index = PoolIndex.build(examples, encoder)
    folder = tmp_path_factory.mktemp("grouped") / "index"
    index.save(folder)
    loaded = PoolIndex.load(folder)
    return SimpleNamespace(
        encoder=encoder,
        index=index,
        memory=Retriever(encoder, index),
        stored=Retriever(encoder, loaded),
    )


def test_a_least_similarity_shortens_the_list(retriever):
    """Demonstrations of another subject can mislead more than none."""
    found = retriever.select("is it red", k=9)
    least = found.demonstrations[4].similarity
    shorter = retriever.select("is it red", k=9, filters=Filters(min_similarity=least))
    expected = [item for item in found if item.similarity >= least]
    assert list(shorter) == expected
    assert len(expected) < 9


def test_queries_of_a_batch_keep_their_own_k_and_filters(retriever):
    """Concurrent users are answered in one batch."""
    queries = [
        Query("is it red", None, 3),
        Query("is it red", None, 7, Filters(exclude_ids=("weather-1",))),
        Query("a cat", "animals", 2, Filters(answers=("red",))),
        Query("a cat", None, 5, Filters(tasks=("animals",), answers=("red",))),
    ]
    together = retriever.answer(queries)
    for query, selection in zip(queries, together, strict=True):
        assert [item.example for item in selection] == [
            item.example for item in retriever.answer([query])[0]
        ]
    assert [len(selection) for selection in together] == [3, 7, 2, 4]


def test_a_task_and_filters_of_tasks_exclude_each_other(retriever):
    """It would not be clear which of them holds."""
    with pytest.raises(ConfigError, match=r"Both task and filters\.tasks"):
        retriever.select("a cat", task="animals", filters=Filters(tasks=("weather",)))
    with pytest.raises(TaskError, match="Unknown task 'sport'"):
        retriever.select("a cat", filters=Filters(tasks=("sport",)))


def test_messages_are_turns_of_user_and_assistant(retriever):
    """Chat models are sent turns; the nearest example stands next to the query."""
    selection = retriever.select("is it red", k=2)
    near, far = (item.example for item in selection)
    assert selection.messages() == [
        {"role": "user", "content": far.query},
        {"role": "assistant", "content": far.answer},
        {"role": "user", "content": near.query},
        {"role": "assistant", "content": near.answer},
        {"role": "user", "content": "is it red"},
    ]


def test_a_row_says_for_itself_what_it_wants(retriever):
    """A table's parameters hold for all rows; users differ."""
    frame = pd.DataFrame(
        {
            "query": ["is it red", "a cat"],
            "k": [2.0, float("nan")],
            "filters": [None, {"tasks": np.array(["weather"])}],
            "format": ["chat", None],
        }
    )
    first, second = answer(retriever, frame, k=3).to_dict("records")
    assert first["messages"] == retriever.select("is it red", k=2).messages()
    weather = retriever.select("a cat", task="weather", k=3)
    assert second["prompt"] == weather.prompt()
    assert first["prompt"] is None
    for wrong, told in (
        ({"k": 2.5}, "k: Input should be a valid integer"),
        ({"format": "xml"}, "format: Input should be 'text'"),
        ({"filters": {"taks": ["a"]}}, "filters.taks: Extra inputs"),
    ):
        row = pd.DataFrame([{"query": "a cat", **wrong}])
        with pytest.raises(ConfigError, match=told):
            answer(retriever, row, k=3)
