"""Claims about BM25 candidates, against BM25 written out plainly here."""

import math
import random
import re

import pytest

from exemplar.data.io import write_records
from exemplar.data.stored import StoredExamples
from exemplar.errors import ConfigError, DataError, TaskError
from exemplar.records import Example
from exemplar.retrieval.bm25 import bm25_candidates
from exemplar.tasks import sample

WORDS = ["river", "stone", "Light", "cold", "the", "of", "a", "moon", "é1", "under_score", "rain"]


def corpus(seed: int, size: int, task: str) -> list[Example]:
    draw = random.Random(seed)
    return [
        Example(
            example_id=f"{task}/{i}",
            task=task,
            query=" ".join(draw.choices(WORDS, k=draw.randint(3, 12))) + f" {task}{i}.",
            answers=(draw.choice(["yes", "no"]),),
        )
        for i in range(size)
    ]


def plain_bm25(query: Example, pool: list[Example], k1: float, b: float) -> list[float]:
    """Lucene's BM25: sum over the query's words of idf * tf / (tf + k1 (1 - b + b len/mean))."""
    documents = [re.findall(r"\w+", example.text.lower()) for example in pool]
    mean = sum(map(len, documents)) / len(documents)
    scores = []
    for document in documents:
        score = 0.0
        for word in re.findall(r"\w+", query.query.lower()):
            frequency = sum(word in other for other in documents)
            idf = math.log(1 + (len(documents) - frequency + 0.5) / (frequency + 0.5))
            tf = document.count(word)
            score += idf * tf / (tf + k1 * (1 - b + b * len(document) / mean))
        scores.append(score)
    return scores


@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.9, 0.4)])
def test_candidates_are_those_of_plain_bm25_over_the_query_s_own_task(k1, b):
    """Wrong scores, or another task's documents in the index, would spoil round 1 unseen."""
    first, second = corpus(1, 30, "first"), corpus(2, 20, "second")
    queries = [*first[:6], *second[:4]]
    found = bm25_candidates(queries, [*first, *second], k=5, k1=k1, b=b)
    for query, candidates in zip(queries, found, strict=True):
        pool = first if query.task == "first" else second
        scores = plain_bm25(query, pool, k1, b)
        best = sorted((-s, i) for i, s in enumerate(scores) if pool[i] is not query)[:5]
        assert candidates.query_id == query.example_id
        assert candidates.similarities == pytest.approx([-s for s, _ in best], abs=1e-5)
        assert candidates.candidate_ids == tuple(pool[i].example_id for _, i in best)


def test_scope_pool_searches_every_task_as_the_paper_does():
    """With the task's own index for every query, the paper's setting could not be repeated."""
    pool = [*corpus(1, 10, "first"), *corpus(2, 10, "second")]
    query = Example("new", "third", "river stone", ("yes",))
    (found,) = bm25_candidates([query], pool, k=8, scope="pool")
    scores = plain_bm25(query, pool, 1.5, 0.75)
    best = sorted((-s, i) for i, s in enumerate(scores))[:8]
    assert found.candidate_ids == tuple(pool[i].example_id for _, i in best)


def test_the_query_itself_and_its_text_are_left_out_and_the_rest_all_come():
    """The query's own text as a demonstration hands the LM the answer."""
    pool = [
        Example("a", "t", "same words", ("yes",)),
        Example("b", "t", "Same  Words", ("no",)),
        Example("c", "t", "nothing shared", ("no",)),
    ]
    (found,) = bm25_candidates([pool[0]], pool, k=100)
    assert found.candidate_ids == ("c",)


def test_without_shared_words_candidates_come_in_pool_order():
    """A query of unknown words, or none, still needs candidates, the same on every machine."""
    pool = corpus(1, 5, "t")
    query = [Example("n", "t", "xyzzy", ("yes",)), Example("m", "t", "?!", ("yes",))]
    for found in bm25_candidates(query, pool, k=3):
        assert found.candidate_ids == ("t/0", "t/1", "t/2")
        assert found.similarities == (0.0, 0.0, 0.0)


def test_a_pool_without_words_is_searched_too():
    """Dividing by a mean length of zero would end the whole step for one odd task."""
    pool = [Example("a", "t", "?", ("!",)), Example("b", "t", "%", ("!",))]
    (found,) = bm25_candidates([Example("n", "t", "word", ("yes",))], pool, k=1)
    assert found.candidate_ids == ("a",)


@pytest.fixture(scope="module")
def sample_pool() -> list[Example]:
    """3,000 texts of the sample set as one task."""
    texts = [*dict.fromkeys(e.text for seed in (0, 1) for e in sample.generate(seed)["pool"])]
    return [Example(f"e{i}", "t", text, ("yes",)) for i, text in enumerate(texts[:3000])]


@pytest.mark.parametrize(("method", "factor"), [("robertson", 2.5), ("bm25+", 1.0)])
def test_both_engines_find_the_same_but_for_ties(sample_pool, method, factor):
    """bm25s scores ahead of time, by sparse matrices; rank-bm25 writes the formula out."""
    assert len(sample_pool) == 3000
    queries = sample_pool[::100]
    ours, theirs = (
        bm25_candidates(queries, sample_pool, k=101, engine=engine, method=method)
        for engine in ("bm25s", "rank-bm25")
    )
    for one, other in zip(ours, theirs, strict=True):
        scores = dict(zip(other.candidate_ids, other.similarities, strict=True))
        found = [factor * value for value in one.similarities]  # rank-bm25 multiplies by k1 + 1
        assert found == pytest.approx(other.similarities, rel=1e-4, abs=1e-4)
        for name, value in zip(one.candidate_ids[:100], found, strict=False):
            tied_with_the_last = value == pytest.approx(found[100], rel=1e-4, abs=1e-4)
            assert tied_with_the_last or scores[name] == pytest.approx(value, rel=1e-4, abs=1e-4)


def test_a_stored_pool_gives_the_candidates_of_a_pool_in_memory(tmp_path):
    """The step reads the pool from its file, task by task."""
    pool = [
        e
        for pair in zip(corpus(1, 30, "first"), corpus(2, 30, "second"), strict=True)
        for e in pair
    ]
    write_records(tmp_path / "pool.parquet", Example, pool, made_from={})
    stored = StoredExamples(tmp_path / "pool.parquet")
    for scope in ("task", "pool"):
        found = bm25_candidates(pool[:9], stored, k=5, scope=scope)
        assert list(found) == list(bm25_candidates(pool[:9], pool, k=5, scope=scope))


def test_an_engine_without_the_method_is_refused():
    """rank-bm25's nearest relative of Lucene's variant would give other candidates."""
    pool = corpus(1, 5, "t")
    with pytest.raises(ConfigError, match=r"'lucene' of engine 'rank-bm25'.*robertson, bm25\+"):
        bm25_candidates(pool[:1], pool, k=3, engine="rank-bm25")


def test_a_task_without_pool_and_a_query_without_candidate_are_named():
    """An empty row would break training much later, far from its cause."""
    pool = [Example("a", "t", "one", ("yes",))]
    with pytest.raises(TaskError, match=r"'other' has queries but not one example"):
        bm25_candidates([Example("q", "other", "one", ("yes",))], pool, k=3)
    with pytest.raises(DataError, match=r"query 'a' of task 't' has no candidate"):
        bm25_candidates(pool, pool, k=3)
    with pytest.raises(ConfigError, match="expected one of lucene"):
        bm25_candidates(pool, pool, k=3, method="okapi")
