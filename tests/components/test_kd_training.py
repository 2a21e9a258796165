"""Claims about kd_training: a retriever of all rounds so far, the same on every run."""

import json

import numpy as np
import pytest

from exemplar import steps
from exemplar.errors import DataError


def train(workspace, out, *, rounds=(1,), number=1, profile=None, rewards=None):
    folders = [workspace.layout.round(n) for n in rounds]
    return steps.kd_training(
        profile or workspace.profile,
        data=workspace.layout.data,
        rewards=rewards or [folder / "rewards.parquet" for folder in folders],
        llm_scores=workspace.layout.round(number) / "llm_scores.parquet",
        out=out,
        number=number,
    )


def weights(folder):
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("number", [1, 2])
def test_the_folder_is_a_sentence_transformers_model_with_mean_pooling(workspace, number):
    """Users load the retriever with the library they know; another pooling is another model."""
    folder = workspace.layout.round(number) / "retriever"
    modules = json.loads((folder / "modules.json").read_text())
    kinds = [module["type"].rsplit(".", 1)[-1] for module in modules]
    assert kinds == ["Transformer", "Pooling", "Normalize"]
    pooling = json.loads((folder / modules[1]["path"] / "config.json").read_text())
    assert pooling.get("pooling_mode", "mean") == "mean"
    assert pooling.get("pooling_mode_mean_tokens", True) is True
    assert all(np.isfinite(value).all() for value in weights(folder).values())


def test_training_moves_the_weights_but_not_the_positions(workspace, tiny_models):
    """Positions that train on short texts spoil long ones (the paper freezes them)."""
    written = json.loads((workspace.layout.round(1) / "retriever/training.json").read_text())
    before, after = weights(tiny_models.encoder), weights(workspace.layout.round(1) / "retriever")
    positions = "embeddings.position_embeddings.weight"
    assert np.array_equal(before[positions], after[positions])
    moved = not np.array_equal(
        before["embeddings.word_embeddings.weight"], after["embeddings.word_embeddings.weight"]
    )
    assert moved == (written["summary"]["best_update"] > 0)


def test_the_best_weights_by_held_out_groups_are_kept(workspace):
    """Keeping the last weights would ship a retriever that had begun to overfit."""
    for number in (1, 2):
        path = workspace.layout.round(number) / "retriever/training.json"
        written = json.loads(path.read_text())
        judged = [row for row in written["history"] if "held_out/loss" in row]
        best = max(judged, key=lambda r: (r["held_out/group_accuracy"], -r["held_out/loss"]))
        assert written["summary"]["best_update"] == best["update"]
        assert written["summary"]["num_updates"] == workspace.profile.kd_training.num_updates


def test_again_the_same_weights(workspace, tmp_path):
    """Two runs that differ by chance alone would be compared as if something had changed."""
    train(workspace, tmp_path / "again")
    for name in ("model.safetensors", "config.json", "modules.json", "tokenizer.json"):
        first = workspace.layout.round(1) / "retriever" / name
        assert (tmp_path / "again" / name).read_bytes() == first.read_bytes()


def test_round_two_learns_from_the_rewards_of_both_rounds(workspace, tmp_path):
    """A command that forgot the earlier rounds would throw away half of what was paid for."""
    train(workspace, tmp_path / "both", rounds=(1, 2), number=2)
    train(workspace, tmp_path / "last", rounds=(2,), number=2)
    by_command = json.loads((workspace.layout.round(2) / "retriever/training.json").read_text())

    def losses(written):
        return [row["loss"] for row in written["history"] if "loss" in row]

    both, last = (
        json.loads((tmp_path / name / "training.json").read_text()) for name in ("both", "last")
    )
    assert losses(by_command) == losses(both)
    assert losses(by_command) != losses(last)


def test_without_rewards_the_lms_scores_are_the_teacher_and_without_scores_the_rewards(
    workspace, tmp_path
):
    """EPR has no reward model, and a release of rewards has no LM scores."""
    folder = workspace.layout.round(1)
    given = {"data": workspace.layout.data, "number": 1}
    scores, rewards = folder / "llm_scores.parquet", folder / "rewards.parquet"
    steps.kd_training(
        workspace.profile, rewards=(), llm_scores=scores, out=tmp_path / "epr", **given
    )
    steps.kd_training(
        workspace.profile, rewards=[rewards], llm_scores=None, out=tmp_path / "kd", **given
    )
    epr, kd = (
        json.loads((tmp_path / name / "training.json").read_text())["summary"]
        for name in ("epr", "kd")
    )
    assert "held_out/kl" not in epr
    assert "held_out/llm_spearman" in epr
    assert "held_out/kl" in kd
    assert "held_out/llm_spearman" not in kd
    for name in ("model.safetensors", "modules.json"):  # the figures alone need the LM's scores
        assert (tmp_path / "kd" / name).read_bytes() == (folder / "retriever" / name).read_bytes()


def test_rewards_of_other_data_are_refused_before_any_training(workspace, tmp_path):
    """Ids may be the same while the texts behind them changed."""
    other = workspace.profile.model_copy(update={"seed": 4})
    steps.download_data(other, data=tmp_path / "data")
    with pytest.raises(DataError, match="was made from another data"):
        steps.kd_training(
            workspace.profile,
            data=tmp_path / "data",
            rewards=[workspace.layout.round(1) / "rewards.parquet"],
            llm_scores=workspace.layout.round(1) / "llm_scores.parquet",
            out=tmp_path / "retriever",
            number=1,
        )
    assert not (tmp_path / "retriever").exists()


def test_the_component_writes_the_same_retriever_from_all_rounds(workspace, component, tmp_path):
    """Round 2 learns from both rounds' rewards; with one of them it would be another retriever."""
    first, second = workspace.layout.round(1), workspace.layout.round(2)
    earlier = tmp_path / "run" / "rounds" / "r1"
    earlier.mkdir(parents=True)
    (earlier / "rewards.parquet").symlink_to(first / "rewards.parquet")
    made = component(
        "kd_training",
        number=2,
        data=workspace.layout.data,
        llm_scores=second / "llm_scores.parquet",
        rewards=second / "rewards.parquet",
        earlier=tmp_path / "run",
    )
    for path in (second / "retriever").rglob("*"):
        if path.is_file():
            other = made["retriever"] / path.relative_to(second / "retriever")
            assert other.read_bytes() == path.read_bytes(), path.name
