"""Claims about dense search, against products and sorts written out plainly."""

import numpy as np
import pytest

from exemplar.errors import DataError, TaskError
from exemplar.records import Example
from exemplar.retrieval import nearest
from exemplar.retrieval.baselines import kmeans_candidates, random_candidates
from exemplar.retrieval.dense import dense_candidates
from exemplar.retrieval.pool_index import PoolIndex
from exemplar.seeding import derive_seed


class FakeEncoder:
    """Unit vectors seeded by the text; counts how often it is asked."""

    def __init__(self):
        self.texts = []

    def encode(self, texts, *, progress=None):
        self.texts += texts
        rows = [np.random.default_rng(derive_seed(text)).normal(size=6) for text in texts]
        vectors = np.array(rows, dtype=np.float32).reshape(len(texts), 6)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def make(size: int, task: str) -> list[Example]:
    return [Example(f"{task}/{i}", task, f"{task} question {i}", ("yes",)) for i in range(size)]


def interleaved() -> list[Example]:
    first, second = make(12, "first"), make(8, "second")
    return [*first[:5], *second[:3], *first[5:], *second[3:]]


def plain_search(query: Example, pool: list[Example], k: int) -> list[tuple[str, float]]:
    encoder = FakeEncoder()
    q = encoder.encode([query.query])[0]
    scored = [
        (-round(float(q @ encoder.encode([example.text])[0]), 5), number, example.example_id)
        for number, example in enumerate(pool)
        if example.example_id != query.example_id and example.query != query.query
    ]
    return [(name, -negated) for negated, _, name in sorted(scored)[:k]]


@pytest.mark.parametrize("scope", ["task", "pool"])
def test_candidates_are_those_of_a_plain_search(scope):
    """Queries embedded with their answer, or other tasks let in, would train on another problem."""
    pool = interleaved()
    queries = [pool[7], pool[0], Example("new", "second", "what now", ("no",))]
    found = dense_candidates(queries, pool, FakeEncoder(), k=4, scope=scope)
    for query, candidates in zip(queries, found, strict=True):
        members = [e for e in pool if scope == "pool" or e.task == query.task]
        expected = plain_search(query, members, 4)
        assert candidates.query_id == query.example_id
        assert candidates.candidate_ids == tuple(name for name, _ in expected)
        assert candidates.similarities == pytest.approx([s for _, s in expected], abs=2e-5)


def test_equal_similarities_keep_pool_order_even_at_the_cut():
    """FAISS orders ties as its threads happen to run; results must not."""
    pool = [Example(f"e{i:02}", "t", f"question {i}", ("yes",)) for i in range(40)]
    embeddings = np.zeros((40, 6), dtype=np.float32)
    embeddings[:, 0] = 1
    embeddings[30, :2] = [0.6, 0.8]
    query = np.array([[0.6, 0.8, 0, 0, 0, 0]], dtype=np.float32)
    (hits,) = PoolIndex(pool, embeddings).search(query, k=4, excluded=[{0, 2}])
    assert [hit.example.example_id for hit in hits] == ["e30", "e01", "e03", "e04"]
    assert [hit.similarity for hit in hits] == [1.0, 0.6, 0.6, 0.6]


def test_fewer_candidates_than_asked_all_come_and_none_is_an_error():
    """FAISS pads with -1, which would name the last pool example over and over."""
    pool = [*make(3, "t"), Example("copy", "t", "T question  0", ("no",))]
    (found,) = dense_candidates([pool[0]], pool, FakeEncoder(), k=50)
    assert sorted(found.candidate_ids) == ["t/1", "t/2"]
    with pytest.raises(DataError, match="query 't/0' of task 't' has no candidate"):
        dense_candidates(pool[:1], pool[:1], FakeEncoder(), k=2)
    with pytest.raises(TaskError, match="'u' has queries but not one"):
        dense_candidates(make(1, "u"), pool, FakeEncoder(), k=2)


def test_an_index_is_embedded_once_for_several_searches():
    """Embedding the pool is most of the work; at paper size it is millions of texts."""
    pool, encoder = interleaved(), FakeEncoder()
    index = PoolIndex.build(pool, encoder)
    encoder.texts.clear()
    dense_candidates(pool[:2], index, encoder, k=2)
    dense_candidates(pool[2:4], index, encoder, k=2)
    assert encoder.texts == [example.query for example in pool[:4]]


def test_a_saved_index_answers_as_before_and_refuses_another_s_pool(tmp_path):
    """An index beside the wrong pool would answer with other examples, without any error."""
    pool, encoder = interleaved(), FakeEncoder()
    index = PoolIndex.build(pool, encoder)
    index.save(tmp_path / "index")
    loaded = PoolIndex.load(tmp_path / "index")
    queries = encoder.encode(["one", "two"])
    assert loaded.search(queries, k=3) == index.search(queries, k=3)
    assert loaded.search(queries, k=3, task="second") == index.search(queries, k=3, task="second")
    assert loaded.tasks == ("first", "second")
    PoolIndex.build(make(20, "t"), encoder).save(tmp_path / "other")
    (tmp_path / "other" / "pool.parquet").replace(tmp_path / "index" / "pool.parquet")
    with pytest.raises(DataError, match="was made from another index"):
        PoolIndex.load(tmp_path / "index")


def clustered(num_rows: int) -> np.ndarray:
    draw = np.random.default_rng(0)
    vectors = draw.normal(size=(num_rows, 4)) @ draw.normal(size=(4, 16))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_a_gpu_s_search_finds_what_faiss_finds():
    """Blocks that are put together wrongly lose candidates, or give those of another block."""
    rows, queries = clustered(500), clustered(510)[500:]
    values, places = nearest.exact(queries, rows, 20)
    assert np.array_equal(places, np.argsort(-queries @ rows.T, axis=1)[:, :20])
    for rows_at_once in (7, 100, 1000):
        found = nearest.by_products(queries, rows, 20, "cpu", rows_at_once=rows_at_once)
        np.testing.assert_allclose(found[0], values, atol=1e-6)
        assert np.array_equal(found[1], places)


class RowEncoder:
    """Gives the embedding whose number the text ends with."""

    def __init__(self, rows):
        self.rows = rows

    def encode(self, texts, *, progress=None):
        return self.rows[[int(text.split()[2]) for text in texts]]


def numbered(count: int, task: str, start: int = 0) -> list[Example]:
    return [
        Example(f"{task}/{i}", task, f"{task} question {i}", ("yes",))
        for i in range(start, start + count)
    ]


def test_an_approximate_search_says_what_it_misses_and_is_exact_in_the_rest(tmp_path):
    """Candidates that are quietly missed would make a round worse for no visible reason."""
    rows = clustered(1300)
    pool = [*numbered(1000, "large"), *numbered(100, "small", 1000)]
    queries = [*numbered(50, "large"), *numbered(50, "small", 1100)]
    encoder, exact = RowEncoder(rows), PoolIndex.build(pool, RowEncoder(rows))
    true = {c.query_id: c for c in dense_candidates(queries, exact, encoder, k=10)}
    for probes, least in ((1, 0.05), (8, 0.6), (10_000, 1.0)):
        index = PoolIndex.build(pool, encoder, approximate_above=500, probes=probes)
        assert index.approximated == ("large",)
        index.save(tmp_path / str(probes))
        found = dense_candidates(queries, PoolIndex.load(tmp_path / str(probes)), encoder, k=10)
        pairs = [(found[i], true[query.example_id]) for i, query in enumerate(queries)]
        shares = [len({*a.candidate_ids} & {*b.candidate_ids}) / 10 for a, b in pairs[:50]]
        assert found.recall == {"large": pytest.approx(sum(shares) / 50)}
        assert least <= found.recall["large"] <= (0.9 if probes == 1 else 1.0)
        assert all(a == b for a, b in pairs[50:])  # a small task is searched exactly
        for given, right in pairs[:50]:
            similarity = dict(zip(right.candidate_ids, right.similarities, strict=True))
            for name, value in zip(given.candidate_ids, given.similarities, strict=True):
                assert similarity.get(name, value) == pytest.approx(value, abs=2e-6)
    whole = dense_candidates(queries, index, encoder, k=10, scope="pool")
    for given, right in zip(
        whole, dense_candidates(queries, exact, encoder, k=10, scope="pool"), strict=True
    ):
        assert given.candidate_ids == right.candidate_ids
        assert given.similarities == pytest.approx(right.similarities, abs=2e-6)
    assert whole.recall == {"all tasks": 1.0}


def test_an_approximate_index_of_another_embedding_is_refused(tmp_path):
    """Its cells would hold the numbers of other rows."""
    for name, pool in (("one", numbered(600, "t")), ("two", numbered(600, "t", 600))):
        index = PoolIndex.build(pool, RowEncoder(clustered(1200)), approximate_above=500)
        index.save(tmp_path / name)
    (tmp_path / "two/approximate-0.faiss").replace(tmp_path / "one/approximate-0.faiss")
    with pytest.raises(DataError, match=r"made from another approximate-0\.faiss"):
        PoolIndex.load(tmp_path / "one")


def test_an_index_without_examples_is_refused():
    """It would fail in the first search, far from where the pool was lost."""
    with pytest.raises(DataError, match="at least one example"):
        PoolIndex([], np.zeros((0, 6), dtype=np.float32))


def test_random_candidates_depend_on_the_query_and_the_seed_alone():
    """A draw that moved with the order of work could not be repeated."""
    pool = [*make(30, "t"), *make(5, "u")]
    found = random_candidates(pool[:4], pool, k=6, seed=1)
    again = random_candidates(pool[3::-1], pool, k=6, seed=1)[::-1]
    assert found == again
    assert found != random_candidates(pool[:4], pool, k=6, seed=2)
    for query, candidates in zip(pool[:4], found, strict=True):
        names = candidates.candidate_ids
        assert len(set(names)) == 6
        assert query.example_id not in names
        assert all(name.startswith("t/") for name in names)


def test_random_candidates_reach_every_example_about_equally():
    """A draw that favours some examples would be no random baseline."""
    pool = make(10, "t")
    queries = [Example(f"q{i}", "t", f"other {i}", ("yes",)) for i in range(2000)]
    counts = dict.fromkeys((example.example_id for example in pool), 0)
    for candidates in random_candidates(queries, pool, k=3, seed=0):
        for name in candidates.candidate_ids:
            counts[name] += 1
    assert all(500 < count < 700 for count in counts.values()), counts


class PlanetEncoder:
    """Three tight clusters on the axes, by the first word."""

    def encode(self, texts, *, progress=None):
        axes = {"mars": 0, "venus": 1, "earth": 2}
        vectors = np.zeros((len(texts), 3), dtype=np.float32)
        for row, text in enumerate(texts):
            words = text.split()
            vectors[row, axes[words[0]]] = 1
            vectors[row, (axes[words[0]] + 1) % 3] = (int(words[1]) - 2) / 10
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_kmeans_gives_every_query_of_a_task_the_example_in_the_middle_of_each_cluster():
    """Cluster edges, or two of one cluster, would make the baseline weaker than the paper's."""
    pool = [
        Example(f"{planet}{i}", "t", f"{planet} {i}", ("yes",))
        for planet in ("mars", "venus", "earth")
        for i in range(5)
    ]
    queries = [Example("q", "t", "mars 9", ("yes",)), pool[0], pool[7]]
    found = kmeans_candidates(queries, pool, PlanetEncoder(), k=3, seed=0)
    assert set(found[0].candidate_ids) == {"mars2", "venus2", "earth2"}
    assert found[1].candidate_ids == found[0].candidate_ids
    assert set(found[2].candidate_ids) == {"mars2", "earth2"}  # venus2 asks for itself
    assert found[0].similarities == tuple(sorted(found[0].similarities, reverse=True))
    assert found == kmeans_candidates(queries, pool, PlanetEncoder(), k=3, seed=0)


def test_kmeans_asks_for_no_more_clusters_than_there_are_different_texts():
    """Sklearn would warn, or fail, on a tiny pool with copies."""
    pool = [Example(f"e{i}", "t", f"mars {i % 2}", (f"{i % 2}",)) for i in range(6)]
    query = Example("q", "t", "mars 9", ("yes",))
    (found,) = kmeans_candidates([query], pool, PlanetEncoder(), k=5, seed=0)
    assert len(found.candidate_ids) == 2
