"""Claims about reward_training: a model folder that can be used, or none at all."""

import json
import re

import pytest

from exemplar import steps
from exemplar.errors import DataError, TrainingError


def train(workspace, out, number=1, profile=None):
    return steps.reward_training(
        profile or workspace.profile,
        data=workspace.layout.data,
        llm_scores=workspace.layout.round(number) / "llm_scores.parquet",
        out=out,
        number=number,
    )


def stricter(workspace, **changes):
    settings = workspace.profile.reward_training.model_copy(update=changes)
    return workspace.profile.model_copy(update={"reward_training": settings})


@pytest.mark.parametrize("number", [1, 2])
def test_the_folder_opens_in_plain_transformers_as_one_score(workspace, number):
    """A folder that only this code can read could not be inspected with anything else."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = workspace.layout.round(number) / "reward_model"
    model, info = AutoModelForSequenceClassification.from_pretrained(
        folder, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert model.config.num_labels == 1
    assert all(torch.isfinite(weight).all() for weight in model.parameters())
    assert len(AutoTokenizer.from_pretrained(folder)) == model.config.vocab_size


def test_the_history_covers_the_training_and_the_summary_judges_held_out_queries(workspace):
    """Curves and the teacher's verdict are read from this file by report and promotion."""
    settings = workspace.profile.reward_training
    written = json.loads((workspace.layout.round(1) / "reward_model/training.json").read_text())
    summary, history = written["summary"], written["history"]
    assert summary["num_updates"] == settings.num_updates == history[-1]["update"]
    assert 0 <= summary["held_out/ranking_accuracy"] <= 1
    assert summary["num_held_out"] > 0
    parts = summary["num_queries"] + summary["num_held_out"] + summary["num_unused"]
    assert parts == len(workspace.dataset.train)
    judged = [row["update"] for row in history if "held_out/loss" in row]
    assert judged == list(range(0, settings.num_updates + 1, settings.eval_every))
    best = max(
        (row for row in history if "held_out/loss" in row),
        key=lambda row: (row["held_out/ranking_accuracy"], -row["held_out/loss"]),
    )
    assert summary["best_update"] == best["update"]


def test_again_the_same_weights(workspace, tmp_path):
    """Two runs that differ by chance alone would be compared as if something had changed."""
    train(workspace, tmp_path / "again")
    weights = workspace.layout.round(1) / "reward_model/model.safetensors"
    assert (tmp_path / "again/model.safetensors").read_bytes() == weights.read_bytes()
    other = stricter(workspace).model_copy(update={"seed": 99})
    train(workspace, tmp_path / "other", profile=other)
    assert (tmp_path / "other/model.safetensors").read_bytes() != weights.read_bytes()


def test_a_teacher_too_weak_stops_the_run_and_leaves_no_model(workspace, tmp_path):
    """A folder left behind would be used by the next step: the retriever would learn noise."""
    with pytest.raises(TrainingError, match=re.escape("at least 0.999 on held-out queries")):
        train(workspace, tmp_path / "model", profile=stricter(workspace, min_accuracy=0.999))
    assert list(tmp_path.iterdir()) == []


def test_a_training_that_diverges_leaves_no_model(workspace, tmp_path):
    """Weights of NaN give rewards that sort in any order."""
    with pytest.raises(TrainingError, match="training stopped at update"):
        train(workspace, tmp_path / "model", profile=stricter(workspace, learning_rate=1e30))
    assert list(tmp_path.iterdir()) == []


def test_scores_of_other_data_are_refused(workspace, tmp_path):
    """Ids may be the same while the texts behind them changed."""
    other = workspace.profile.model_copy(update={"seed": 4})
    steps.download_data(other, data=tmp_path / "data")
    with pytest.raises(DataError, match="was made from another data"):
        steps.reward_training(
            workspace.profile,
            data=tmp_path / "data",
            llm_scores=workspace.layout.round(1) / "llm_scores.parquet",
            out=tmp_path / "model",
            number=1,
        )
    assert not (tmp_path / "model").exists()


def test_the_component_writes_the_same_model(workspace, component):
    """The weights decide all that follows; only the seconds may differ."""
    folder = workspace.layout.round(1)
    made = component(
        "reward_training",
        number=1,
        data=workspace.layout.data,
        llm_scores=folder / "llm_scores.parquet",
    )
    for path in (folder / "reward_model").iterdir():
        assert (made["reward_model"] / path.name).read_bytes() == path.read_bytes(), path.name
