"""Claims about bm25_candidates: every training query gets the best of its task, and not itself."""

import hashlib
import math
import re
from collections import Counter

import pytest

from exemplar import steps
from exemplar.data.io import made_from, read_records
from exemplar.records import Candidates


@pytest.fixture(scope="module")
def candidates(workspace):
    return read_records(workspace.layout.round(1) / "candidates.parquet", Candidates)


def plain_bm25(query: str, documents: dict[str, str], k1: float, b: float) -> dict[str, float]:
    """BM25 as Lucene defines it, written out; a repeated query word counts as often."""
    words = {name: re.findall(r"\w+", text.lower()) for name, text in documents.items()}
    mean = sum(map(len, words.values())) / len(words)
    scores = {}
    for name, own in words.items():
        counts, total = Counter(own), 0.0
        for word in re.findall(r"\w+", query.lower()):
            having = sum(word in others for others in words.values())
            if having:
                idf = math.log(1 + (len(words) - having + 0.5) / (having + 0.5))
                length = 1 - b + b * len(own) / mean
                total += idf * counts[word] / (counts[word] + k1 * length)
        scores[name] = total
    return scores


def test_every_training_query_has_its_candidates_in_order(workspace, candidates):
    """A query without candidates is silently lost for training."""
    dataset = workspace.dataset
    assert [item.query_id for item in candidates] == [query.example_id for query in dataset.train]
    wanted = workspace.profile.bm25_candidates.num_candidates
    assert {len(item.candidate_ids) for item in candidates} == {wanted}
    for item in candidates:
        assert list(item.similarities) == sorted(item.similarities, reverse=True)


def test_no_query_is_its_own_candidate_and_all_are_of_its_task(workspace, candidates):
    """Its own answer in the prompt would make the LM's score meaningless."""
    pool = workspace.dataset.pool_by_id
    for item in candidates:
        query = pool[item.query_id]
        plain = " ".join(query.query.casefold().split())
        for name in item.candidate_ids:
            assert name != item.query_id
            assert pool[name].task == query.task
            assert " ".join(pool[name].query.casefold().split()) != plain


def test_similarities_are_those_of_the_written_out_formula(workspace, candidates):
    """A wrong index, or answers mixed into queries, would only show as worse candidates."""
    dataset, settings = workspace.dataset, workspace.profile.bm25_candidates
    for item in candidates[::4]:
        query = dataset.pool_by_id[item.query_id]
        texts = {e.example_id: e.text for e in dataset.pool if e.task == query.task}
        expected = plain_bm25(query.query, texts, settings.k1, settings.b)
        found = dict(zip(item.candidate_ids, item.similarities, strict=True))
        assert found == pytest.approx({name: expected[name] for name in found}, abs=1e-4)
        others = [v for name, v in expected.items() if name not in found and name != item.query_id]
        assert min(found.values()) >= max(others) - 1e-4


def test_the_file_is_sealed_and_repeatable(workspace, tmp_path):
    """A file that cannot be traced to its data cannot be trusted after the data changed."""
    path = workspace.layout.round(1) / "candidates.parquet"
    assert made_from(path) == {"data": workspace.dataset.fingerprint}
    steps.bm25_candidates(
        workspace.profile, data=workspace.layout.data, out=tmp_path / "again.parquet"
    )
    assert (tmp_path / "again.parquet").read_bytes() == path.read_bytes()
    digests = [
        hashlib.sha256((workspace.layout.data / f"{name}.parquet").read_bytes()).hexdigest()
        for name in ("pool", "train", "test")
    ]
    text = "\n".join(f"{n} {d}" for n, d in zip(("pool", "train", "test"), digests, strict=True))
    assert workspace.dataset.fingerprint == hashlib.sha256(text.encode()).hexdigest()


def test_the_component_writes_the_same_candidates(workspace, component):
    """Everything after them would differ between the runners."""
    made = component("bm25_candidates", data=workspace.layout.data)
    expected = workspace.layout.round(1) / "candidates.parquet"
    assert made["candidates"].read_bytes() == expected.read_bytes()
