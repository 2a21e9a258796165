"""Claims about working from the authors' release, by the commands that docs/method.md lists."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import yaml

from exemplar.data.dataset import read_dataset
from exemplar.data.io import read_json, read_records
from exemplar.records import Candidates, Outcome


@pytest.fixture(scope="module")
def space(release, write_params, run_cli, tmp_path_factory):
    """A workspace over a release, with a baseline that is trained on its rewards."""
    root = tmp_path_factory.mktemp("release")
    files = release.write(root / "files")
    source = {"source": "released", "path": str(files), "tasks": None, "max_pool": None}
    params = write_params(
        root / "params.yaml",
        {f"download_data.{name}": value for name, value in source.items()},
    )
    document = yaml.safe_load(params.read_text())
    document["trained"] = {"llm_r": {"teacher": "rewards", "path": "data/released"}}
    params.write_text(yaml.safe_dump(document))

    def run(*arguments):
        done = run_cli("--params", params, "--root", root, *arguments)
        assert done.code == 0, f"{arguments}: {done.err}"
        return done

    run("download-data")
    return SimpleNamespace(root=root, files=files, params=params, run=run)


def test_a_retriever_is_trained_from_the_released_rewards_and_judged_like_a_baseline(space):
    """Days of LM scoring are in those files: nothing may ask for the LM or a reward model again."""
    for command in ("kd-training", "search", "evaluation"):
        space.run(command, "--baseline", "llm_r")
    folder, dataset = space.root / "baselines/llm_r", read_dataset(space.root / "data")
    assert not (space.root / "rounds").exists()
    summary = read_json(folder / "retriever/training.json")["summary"]
    assert summary["num_queries"] + summary["num_held_out"] == len(dataset.train)
    assert "held_out/reward_spearman" in summary  # the rewards of both rounds are the teacher
    assert "held_out/llm_spearman" not in summary  # there are no LM scores to compare with
    chosen = read_records(folder / "demonstrations.parquet", Candidates)
    tasks = {example.example_id: example.task for example in dataset.pool}
    for item, query in zip(chosen, dataset.searching(dataset.test), strict=True):
        assert {tasks[name] for name in item.candidate_ids} == {query.task}
    outcomes = read_records(folder / "evaluation/outcomes.parquet", Outcome)
    assert {one.task for one in outcomes} == set(dataset.tasks) >= {"mnli_m", "wsc273", "qnli"}
    labels = set(dataset.specs["mnli_m"].labels)
    assert {one.prediction for one in outcomes if one.task == "mnli_m"} <= labels


def test_their_checkpoint_is_evaluated_as_it_comes_and_compared(space, tiny_models, tmp_path):
    """A plain BERT folder, pooled by the mean, without prefix: the shape of their checkpoint."""
    assert not (tiny_models.encoder / "modules.json").exists()
    for name, retriever in (("theirs", tiny_models.encoder), ("bm25", "bm25")):
        given = ("--source", "released", "--path", space.files, "--shots", 2, "--max-test", 2)
        space.run("evaluate", "--retriever", retriever, *given, "--out", tmp_path / name)
    assert not (tmp_path / "theirs/data/released/r1").exists()  # nothing learns from scores here
    compared = space.run("compare", tmp_path / "bm25", tmp_path / "theirs")
    assert "mnli_m" in compared.out


def test_rounds_of_ones_own_run_on_the_same_data_from_the_authors_candidates(space):
    """Their candidates are sealed like ours, so scoring takes them without a word."""
    target = space.root / "rounds/r1/candidates.parquet"
    target.parent.mkdir(parents=True)
    target.write_bytes((space.root / "data/released/r1/candidates.parquet").read_bytes())
    space.run("llm-scoring", "--round", 1)
    assert (space.root / "rounds/r1/llm_scores.parquet").exists()


def test_export_writes_the_files_back(space, release, tmp_path):
    """The way back to the authors' own code stays open."""
    space.run("export", "--out", tmp_path / "back")
    for path in space.files.iterdir():
        assert release.content(tmp_path / "back" / path.name) == release.content(path), path.name
