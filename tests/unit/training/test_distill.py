import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from exemplar.errors import DataError, TrainingError
from exemplar.records import LlmScores, Rewards
from exemplar.retrieval.encoder import Encoder
from exemplar.training.distill import train_retriever

SETTINGS = {
    "seed": 0,
    "round": 1,
    "batch_size": 8,
    "max_length": 48,
    "eval_fraction": 0.25,
    "classification_tasks": ("task0", "task1"),
    "num_bottom": 8,
    "dropout": 0.0,
    "num_updates": 30,
    "learning_rate": 3e-3,
    "warmup": 3,
    "eval_every": 10,
    "dtype": "float32",
}


def train(tiny_bert, world, out, *, rounds=None, **changes):
    settings = {**SETTINGS, **changes}
    return train_retriever(
        str(tiny_bert), world.examples_by_id, rounds or [world.rewards], out, **settings
    )


@pytest.fixture(scope="module")
def trained(tiny_bert, world, tmp_path_factory):
    out = tmp_path_factory.mktemp("retriever") / "model"
    return out, train(tiny_bert, world, out, llm_scores=world.scores)


def test_of_lm_scores_the_retriever_learns_by_contrast_what_the_lm_prefers(
    tiny_bert, world, tmp_path
):
    """EPR as a baseline means nothing if it does not learn, or learns from rewards after all."""
    scores = [
        LlmScores(each.query_id, each.candidate_ids, each.rewards, ("",) * len(each.rewards))
        for each in world.rewards
    ]
    report = train(tiny_bert, world, tmp_path / "epr", rounds=[scores], llm_scores=scores)
    summary = report.summary
    assert summary["held_out/group_accuracy"] > summary["before/group_accuracy"] + 0.2
    assert summary["held_out/llm_spearman"] > summary["before/llm_spearman"] + 0.1
    assert not {"held_out/kl", "held_out/reward_spearman"} & summary.keys()
    assert "kl" not in report.history[1]


def without_time(report):
    rows = [report.summary, *report.history]
    return [{name: v for name, v in row.items() if "second" not in name} for row in rows]


def test_the_retriever_learns_what_is_rewarded(trained):
    """A loop whose parts each work can still teach nothing."""
    summary = trained[1].summary
    assert summary["held_out/group_accuracy"] > summary["before/group_accuracy"] + 0.1
    assert summary["held_out/group_accuracy"] > 0.9
    assert summary["held_out/reward_spearman"] > summary["before/reward_spearman"]
    assert summary["held_out/label_agreement_at_3"] > summary["before/label_agreement_at_3"] + 0.1
    assert summary["held_out/loss"] < 0.7 * summary["before/loss"]
    assert summary["held_out/loss"] == pytest.approx(
        summary["held_out/kl"] + 0.2 * summary["held_out/contrastive"]
    )
    assert -1 <= summary["held_out/llm_spearman"] <= 1
    rows = [row for row in trained[1].history if "loss" in row]
    assert {"kl", "contrastive", "grad_norm", "lr"} <= set(rows[0])


def test_the_written_folder_is_an_encoder_that_finds_like_labels(trained, world):
    """What was measured in training must be what the search step loads."""
    encoder = Encoder.load(trained[0])
    pool = [e for e in world.examples_by_id.values() if int(e.example_id[1:]) >= 40]
    queries = [e for e in world.examples_by_id.values() if int(e.example_id[1:]) < 40]
    pool_PD = encoder.encode([each.text for each in pool])
    nearest = np.argmax(encoder.encode([each.query for each in queries]) @ pool_PD.T, axis=1)
    hits = [pool[p].answer == q.answer for p, q in zip(nearest, queries, strict=True)]
    assert np.mean(hits) > 0.9
    assert encoder.max_length == 48
    assert (trained[0] / "training.json").is_file()


def test_two_trainings_are_equal(trained, tiny_bert, world, tmp_path):
    """A result that cannot be repeated cannot be compared with."""
    report = train(tiny_bert, world, tmp_path / "again", llm_scores=world.scores)
    assert without_time(report) == without_time(trained[1])
    first, second = (load_file(p / "model.safetensors") for p in (trained[0], tmp_path / "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def changed(before, after):
    old, new = (load_file(folder / "model.safetensors") for folder in (before, after))
    return {name for name in old if name in new and not torch.equal(old[name], new[name])}


def test_frozen_weights_stay_and_the_others_move(trained, tiny_bert, world, tmp_path):
    """Position embeddings seen at short lengths only would drift apart from the rest."""
    moved = changed(tiny_bert, trained[0])
    assert not any("position_embeddings" in name for name in moved)
    assert any("word_embeddings" in name for name in moved)
    train(tiny_bert, world, tmp_path / "out", freeze_layers=2, num_updates=4)
    moved = changed(tiny_bert, tmp_path / "out")
    assert moved
    assert all(name.startswith(("encoder.layer.2.", "pooler.")) for name in moved)


def test_every_round_s_rewards_are_trained_on(tiny_bert, world, tmp_path):
    """A round left out is LM work of hours thrown away."""
    noise = [
        Rewards(r.query_id, r.candidate_ids, tuple(-value for value in r.rewards))
        for r in world.rewards
    ]
    both = train(tiny_bert, world, tmp_path / "both", rounds=[world.rewards, noise])
    one = train(tiny_bert, world, tmp_path / "one")
    assert both.summary["held_out/reward_spearman"] == pytest.approx(0, abs=0.05)
    assert both.summary["num_queries"] == one.summary["num_queries"]
    assert both.history[1]["loss"] != one.history[1]["loss"]


def test_masking_labels_leaves_no_like_label_among_the_negatives(tiny_bert, world, tmp_path):
    """With three labels a third of in-batch negatives are right answers."""
    options = {"num_updates": 1, "warmup": 0, "eval_every": 1}
    plain = train(tiny_bert, world, tmp_path / "plain", **options).summary
    masked = train(tiny_bert, world, tmp_path / "masked", mask_same_label=True, **options).summary
    assert masked["before/contrastive"] < plain["before/contrastive"]
    assert masked["before/kl"] == plain["before/kl"]


def test_homogeneous_batches_are_a_switch(trained, tiny_bert, world, tmp_path):
    """A switch that changes nothing would be reported as an effect of zero."""
    report = train(tiny_bert, world, tmp_path / "out", homogeneous_batches=True)
    assert report.history[1]["loss"] != trained[1].history[1]["loss"]
    assert report.summary["held_out/group_accuracy"] > 0.8


def test_gradient_checkpointing_changes_the_memory_not_the_weights(
    trained, tiny_bert, world, tmp_path
):
    """A cheaper way to the same gradients must give the same gradients."""
    train(tiny_bert, world, tmp_path / "out", gradient_checkpointing=True, num_updates=3, warmup=1)
    train(tiny_bert, world, tmp_path / "same", num_updates=3, warmup=1)
    first, second = (load_file(tmp_path / n / "model.safetensors") for n in ("out", "same"))
    assert all(torch.allclose(first[name], second[name], atol=1e-6) for name in first)


def test_rewards_that_give_no_negative_are_one_clear_error(tiny_bert, world, tmp_path):
    """Candidates of the query's own label alone: nothing is left to push away."""
    by_id = world.examples_by_id
    rewards = []
    for record in world.rewards:
        own = [
            (candidate_id, reward)
            for candidate_id, reward in zip(record.candidate_ids, record.rewards, strict=True)
            if by_id[candidate_id].answer == by_id[record.query_id].answer
        ]
        if own:
            rewards.append(Rewards(record.query_id, *zip(*own, strict=True)))
    with pytest.raises(TrainingError, match="can be a negative"):
        train(tiny_bert, world, tmp_path / "out", rounds=[rewards])


def test_unknown_ids_are_refused(tiny_bert, world, tmp_path):
    """Rewards of another data set would train on the wrong texts."""
    rewards = [Rewards("elsewhere", ("e1", "e2"), (0.0, 1.0))]
    with pytest.raises(DataError, match="'elsewhere'"):
        train(tiny_bert, world, tmp_path / "out", rounds=[rewards])
    assert not list(tmp_path.iterdir())
