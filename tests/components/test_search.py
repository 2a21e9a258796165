"""Claims about search: exactly the nearest, for the test and the next round, by every method."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from exemplar import steps
from exemplar.data.io import fingerprint, made_from, read_records
from exemplar.errors import ModelError
from exemplar.layout import Layout
from exemplar.records import Candidates, Outcome
from exemplar.retrieval.dense import dense_candidates
from exemplar.retrieval.encoder import Encoder
from exemplar.retrieval.pool_index import PoolIndex
from exemplar.settings import Baseline

TASKS = ("library_slips", "museum_marks", "inn_customs", "board_notes")


def plain(example) -> str:
    return " ".join(example.query.casefold().split())


def plain_embeddings(folder, texts):
    """Mean pooling over plain transformers, one text at a time, at length one."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder, dtype="float32").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    for text in texts:
        encoded = tokenizer(text, truncation=True, max_length=64, return_tensors="pt")
        with torch.no_grad():
            mean = model(**encoded).last_hidden_state[0].mean(dim=0)
        rows.append((mean / mean.norm()).numpy())
    return np.stack(rows).astype("float64")


def nearest(query_D, query, pool, pool_PD, k):
    """Numpy's top k among the query's task, without the query's own text; ties in pool order."""
    eligible = [i for i, e in enumerate(pool) if e.task == query.task and plain(e) != plain(query)]
    similarities = (pool_PD[eligible] @ query_D).round(6)
    order = np.argsort(-similarities, kind="stable")[:k]
    return [pool[eligible[i]].example_id for i in order], similarities[order]


@pytest.mark.parametrize(
    ("number", "split", "k"), [(1, "test", 3), (1, "train", 10), (2, "test", 3), (2, "train", 10)]
)
def test_a_round_finds_what_numpy_finds(workspace, number, split, k):
    """An approximate or misaligned index would only show as a slightly worse retriever."""
    dataset, folder = workspace.dataset, workspace.layout.round(number)
    path = (
        folder / "demonstrations.parquet"
        if split == "test"
        else workspace.layout.round(number + 1) / "candidates.parquet"
    )
    found = read_records(path, Candidates)
    queries = getattr(dataset, split)
    assert [item.query_id for item in found] == [query.example_id for query in queries]
    pool_PD = plain_embeddings(folder / "retriever", [e.text for e in dataset.pool])
    queries_QD = plain_embeddings(folder / "retriever", [q.query for q in queries])
    for item, query, query_D in zip(found, queries, queries_QD, strict=True):
        ids, similarities = nearest(query_D, query, dataset.pool, pool_PD, k)
        assert item.similarities == pytest.approx(similarities.tolist(), abs=2e-6)
        if len(set(similarities)) == k and np.diff(similarities).max() < -1e-5:
            assert list(item.candidate_ids) == ids


def test_the_untrained_baseline_is_the_encoder_that_distillation_starts_from(
    workspace, tiny_models
):
    """It shows what training adds; another encoder would show something else."""
    dataset = workspace.dataset
    found = read_records(
        workspace.layout.baseline("untrained") / "demonstrations.parquet", Candidates
    )
    pool_PD = plain_embeddings(tiny_models.encoder, [e.text for e in dataset.pool])
    queries_QD = plain_embeddings(tiny_models.encoder, [q.query for q in dataset.test])
    for item, query, query_D in zip(found, dataset.test, queries_QD, strict=True):
        _, similarities = nearest(query_D, query, dataset.pool, pool_PD, 3)
        assert item.similarities == pytest.approx(similarities.tolist(), abs=2e-6)


@pytest.mark.parametrize("name", ["random", "kmeans", "bm25", "untrained", "zero_shot"])
def test_every_method_gives_each_test_query_others_of_its_task(workspace, name):
    """A demonstration that is the query itself would make a baseline look unbeatable."""
    dataset = workspace.dataset
    found = read_records(workspace.layout.baseline(name) / "demonstrations.parquet", Candidates)
    assert [item.query_id for item in found] == [query.example_id for query in dataset.test]
    for item in found:
        query = dataset.test_by_id[item.query_id]
        shown = [dataset.pool_by_id[i] for i in item.candidate_ids]
        assert len(shown) == (0 if name == "zero_shot" else workspace.profile.search.num_shots)
        assert all(e.task == query.task and plain(e) != plain(query) for e in shown)


def test_kmeans_shows_the_same_to_a_whole_task_and_random_does_not(workspace):
    """That is what tells these two baselines apart from retrieval, and from each other."""
    shown = {}
    for name in ("kmeans", "random"):
        path = workspace.layout.baseline(name) / "demonstrations.parquet"
        for item in read_records(path, Candidates):
            task = workspace.dataset.test_by_id[item.query_id].task
            shown.setdefault((name, task), set()).add(item.candidate_ids)
    assert {len(sets) for (name, _), sets in shown.items() if name == "kmeans"} == {1}
    assert min(len(sets) for (name, _), sets in shown.items() if name == "random") > 1


def test_files_name_the_data_and_the_retriever_they_were_made_from(workspace):
    """Candidates of an older retriever would be scored as the new one's."""
    for number in (1, 2):
        folder = workspace.layout.round(number)
        expected = {
            "data": workspace.dataset.fingerprint,
            "retriever": fingerprint(folder / "retriever"),
        }
        assert made_from(folder / "demonstrations.parquet") == expected
        assert made_from(workspace.layout.round(number + 1) / "candidates.parquet") == expected
    baseline = workspace.layout.baseline("bm25") / "demonstrations.parquet"
    assert made_from(baseline) == {"data": workspace.dataset.fingerprint}


def test_the_kept_index_finds_the_demonstrations_that_were_evaluated(workspace):
    """It is what gets served: another pool or encoder would answer otherwise than was judged."""
    for number in (1, 2):
        folder = workspace.layout.round(number)
        index, encoder = PoolIndex.load(folder / "index"), Encoder.load(folder / "retriever")
        shots = workspace.profile.search.num_shots
        found = dense_candidates(workspace.dataset.test, index, encoder, k=shots)
        assert list(found) == read_records(folder / "demonstrations.parquet", Candidates)
        sealed = made_from(folder / "index/pool.parquet")
        assert sealed["data"] == workspace.dataset.fingerprint
        assert sealed["retriever"] == fingerprint(folder / "retriever")


def test_an_approximate_search_reports_its_recall(workspace, tmp_path):
    """Missed candidates show nowhere else; the figures land in the step's costs."""
    changes = {"approximate_above": 20, "probes": 1000}
    settings = workspace.profile.search.model_copy(update=changes)
    figures = steps.search(
        workspace.profile.model_copy(update={"search": settings}),
        data=workspace.layout.data,
        method=workspace.layout.round(1) / "retriever",
        out=tmp_path / "demonstrations.parquet",
        index=tmp_path / "index",
    )
    assert figures == {"demonstrations": 20, **{f"recall, {task}": 1.0 for task in TASKS}}
    assert len(list((tmp_path / "index").glob("approximate-*.faiss"))) == len(TASKS)
    path = workspace.layout.round(1) / "demonstrations.parquet"
    for one, other in zip(
        read_records(tmp_path / "demonstrations.parquet", Candidates),
        read_records(path, Candidates),
        strict=True,
    ):
        assert set(one.candidate_ids) == set(other.candidate_ids)


def test_again_the_same_bytes(workspace, tmp_path):
    """DVC would rerun everything after a search whose output changes by itself."""
    figures = steps.search(
        workspace.profile,
        data=workspace.layout.data,
        method=workspace.layout.round(1) / "retriever",
        out=tmp_path / "demonstrations.parquet",
        next_candidates=tmp_path / "candidates.parquet",
    )
    assert figures == {"demonstrations": 20, "candidates": 30}
    first = {
        "demonstrations.parquet": workspace.layout.round(1),
        "candidates.parquet": workspace.layout.round(2),
    }
    for name, folder in first.items():
        old, new = (
            hashlib.sha256(path.read_bytes()).hexdigest()
            for path in (folder / name, tmp_path / name)
        )
        assert old == new


def test_a_folder_that_holds_no_encoder_is_refused(workspace, tmp_path):
    """The first guess at the cause would be the search, not a training that never ran."""
    (tmp_path / "retriever").mkdir()
    (tmp_path / "retriever" / "notes.json").write_text(json.dumps({}))
    with pytest.raises(ModelError, match="is no encoder"):
        steps.search(
            workspace.profile,
            data=workspace.layout.data,
            method=tmp_path / "retriever",
            out=tmp_path / "demonstrations.parquet",
        )
    assert not (tmp_path / "demonstrations.parquet").exists()


def test_prefixes_stand_before_queries_and_pool_examples(workspace, tiny_models, tmp_path):
    """An encoder that was trained with "query: " is a worse one without it."""
    steps.search(
        workspace.profile,
        data=workspace.layout.data,
        method=Baseline(
            method="dense",
            encoder=str(tiny_models.encoder),
            query_prefix="the cup: ",
            passage_prefix="a river: ",
        ),
        out=tmp_path / "demonstrations.parquet",
    )
    dataset = workspace.dataset
    pool_PD = plain_embeddings(tiny_models.encoder, [f"a river: {e.text}" for e in dataset.pool])
    queries = [f"the cup: {q.query}" for q in dataset.test]
    queries_QD = plain_embeddings(tiny_models.encoder, queries)
    found = read_records(tmp_path / "demonstrations.parquet", Candidates)
    for item, query, query_D in zip(found, dataset.test, queries_QD, strict=True):
        _, similarities = nearest(query_D, query, dataset.pool, pool_PD, 3)
        assert item.similarities == pytest.approx(similarities.tolist(), abs=2e-6)


def test_a_baseline_may_bring_its_own_encoder(workspace, tmp_path):
    """Comparing with a published encoder needs no code."""
    steps.search(
        workspace.profile,
        data=workspace.layout.data,
        method=Baseline(method="dense", encoder=str(workspace.layout.round(1) / "retriever")),
        out=tmp_path / "demonstrations.parquet",
    )
    trained = read_records(workspace.layout.round(1) / "demonstrations.parquet", Candidates)
    assert read_records(tmp_path / "demonstrations.parquet", Candidates) == trained


def test_the_component_finds_the_same_by_retriever_registry_and_baseline(workspace, component):
    """A method that finds other demonstrations on a cluster is another method."""
    folder, data = workspace.layout.round(1), workspace.layout.data
    made = component("search", target="r1", data=data, retriever=folder / "retriever")
    following = workspace.layout.round(2) / "candidates.parquet"
    demonstrations = folder / "demonstrations.parquet"
    assert made["demonstrations"].read_bytes() == demonstrations.read_bytes()
    assert made["next_candidates"].read_bytes() == following.read_bytes()
    assert fingerprint(made["index"]) == fingerprint(folder / "index")
    registered = component(
        "search", target="again", data=data, registered="models:/tiny-retriever/1"
    )
    assert registered["next_candidates"].read_bytes() == following.read_bytes()
    for name in ("random", "untrained"):
        item = {"target": name, "method": workspace.params.baselines[name].method}
        made = component("search", target=name, data=data, method=item)
        expected = workspace.layout.baseline(name) / "demonstrations.parquet"
        assert made["demonstrations"].read_bytes() == expected.read_bytes()
        assert not made["index"].exists()


def test_switches_choose_the_test_splits_demonstrations_alone(
    workspace, write_params, run_cli, tmp_path
):
    """Candidates for training must stay the nearest: the LM would score another ranking."""
    changes = {"one_per_group": True, "balance_labels": True, "order": "nearest_first"}
    params = write_params(tmp_path / "params.yaml", {"search.selection": changes})
    layout = Layout(tmp_path)
    shutil.copytree(workspace.layout.data, layout.data)
    shutil.copytree(workspace.layout.round(1) / "retriever", layout.round(1) / "retriever")
    for of_step in (("--round", 1), ("--baseline", "bm25"), ("--baseline", "random")):
        done = run_cli("--params", params, "--root", tmp_path, "search", *of_step)
        assert done.code == 0, done.err
    same = workspace.layout.round(2) / "candidates.parquet"
    assert (layout.round(2) / "candidates.parquet").read_bytes() == same.read_bytes()
    for folder in (layout.round(1), layout.baseline("bm25")):
        for item in read_records(folder / "demonstrations.parquet", Candidates):
            task = workspace.dataset.test_by_id[item.query_id].task
            shown = [workspace.dataset.pool_by_id[name] for name in item.candidate_ids]
            assert len(shown) == 3
            assert list(item.similarities) == sorted(item.similarities)
            if task in workspace.dataset.classification_tasks:
                assert len({example.answer for example in shown}) > 1
    # What does not rank the pool has nothing to choose from.
    drawn = Path("baselines/random/demonstrations.parquet")
    assert (tmp_path / drawn).read_bytes() == (workspace.root / drawn).read_bytes()


def test_evaluation_drops_the_least_similar_when_the_nearest_stand_first(
    workspace, write_params, run_cli, tmp_path
):
    """The list of demonstrations is then turned round, and dropping by place loses the nearest."""
    changes = {"search.selection": {"order": "nearest_first"}, "lm.max_length": 90}
    params = write_params(tmp_path / "params.yaml", changes)
    layout = Layout(tmp_path)
    shutil.copytree(workspace.layout.data, layout.data)
    for step in ("search", "evaluation"):
        done = run_cli("--params", params, "--root", tmp_path, step, "--baseline", "bm25")
        assert done.code == 0, done.err
    folder = layout.baseline("bm25")
    listed = {
        item.query_id: item.candidate_ids
        for item in read_records(folder / "demonstrations.parquet", Candidates)
    }
    outcomes = read_records(folder / "evaluation/outcomes.parquet", Outcome)
    assert any(outcome.num_dropped for outcome in outcomes)
    for outcome in outcomes:
        assert outcome.demonstration_ids == listed[outcome.example_id][outcome.num_dropped :]
