"""Claims about reward_scoring: every candidate gets the reward model's own score."""

import hashlib

import pytest

from exemplar import steps
from exemplar.data.io import fingerprint, made_from, read_records
from exemplar.errors import DataError, ModelError
from exemplar.records import Candidates, Rewards


@pytest.fixture(scope="module")
def rewards(workspace):
    return read_records(workspace.layout.round(1) / "rewards.parquet", Rewards)


def score(workspace, out, model, profile=None):
    return steps.reward_scoring(
        profile or workspace.profile,
        data=workspace.layout.data,
        candidates=workspace.layout.round(1) / "candidates.parquet",
        reward_model=model,
        out=out,
    )


def test_every_candidate_of_every_query_has_a_reward(workspace, rewards):
    """The retriever learns from all of them, not only from those that the LM scored."""
    proposed = read_records(workspace.layout.round(1) / "candidates.parquet", Candidates)
    assert [(r.query_id, r.candidate_ids) for r in rewards] == [
        (c.query_id, c.candidate_ids) for c in proposed
    ]


def test_rewards_are_those_of_plain_transformers_pair_by_pair(workspace, rewards):
    """Padding, sorting or swapped sides would give numbers that look as good."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = workspace.layout.round(1) / "reward_model"
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pool = workspace.dataset.pool_by_id
    for item in rewards[::6]:
        query = pool[item.query_id]
        left = f"{query.query}\n{query.answers[0]}"
        for name, found in list(zip(item.candidate_ids, item.rewards, strict=True))[::3]:
            right = f"{pool[name].query}\n{pool[name].answers[0]}"
            encoded = tokenizer(left, right, return_tensors="pt")
            assert encoded["input_ids"].shape[1] <= workspace.profile.reward_training.max_length
            with torch.no_grad():
                expected = float(model(**encoded).logits[0, 0])
            assert found == pytest.approx(expected, abs=1e-5)


def test_the_file_names_data_candidates_and_model(workspace):
    """Rewards of another model must not be taken for this round's."""
    folder = workspace.layout.round(1)
    candidates = hashlib.sha256((folder / "candidates.parquet").read_bytes()).hexdigest()
    assert made_from(folder / "rewards.parquet") == {
        "data": workspace.dataset.fingerprint,
        "candidates": candidates,
        "reward_model": fingerprint(folder / "reward_model"),
    }


def test_the_size_of_batches_does_not_change_the_rewards(workspace, rewards, tmp_path):
    """It is set by the machine's memory; results must not depend on the machine."""
    settings = workspace.profile.reward_scoring.model_copy(update={"batch_tokens": 100})
    profile = workspace.profile.model_copy(update={"reward_scoring": settings})
    model = workspace.layout.round(1) / "reward_model"
    figures = score(workspace, tmp_path / "again.parquet", model, profile)
    again = read_records(tmp_path / "again.parquet", Rewards)
    for new, old in zip(again, rewards, strict=True):
        assert new.rewards == pytest.approx(old.rewards, abs=1e-5)
    assert figures == {"queries": len(rewards), "pairs": sum(len(r.rewards) for r in rewards)}


def test_an_encoder_without_a_trained_head_is_no_reward_model(workspace, tiny_models, tmp_path):
    """Its head would be random numbers, and so would the rewards."""
    with pytest.raises(ModelError, match="no trained head"):
        score(workspace, tmp_path / "rewards.parquet", tiny_models.encoder)
    assert list(tmp_path.iterdir()) == []


def test_the_component_writes_the_same_rewards_alone_and_in_shares(
    workspace, component, monkeypatch
):
    """Shards must not change a result, nor may a share that is missing go unnoticed."""
    from exemplar.training import reward, reward_shares

    folder = workspace.layout.round(1)
    inputs = {
        "data": workspace.layout.data,
        "candidates": folder / "candidates.parquet",
        "reward_model": folder / "reward_model",
    }
    alone = component("reward_scoring", number=1, **inputs)["rewards"]
    assert alone.read_bytes() == (folder / "rewards.parquet").read_bytes()
    monkeypatch.setattr(reward, "SLAB", 64)
    monkeypatch.setattr(reward_shares, "SLAB", 64)  # so that every share gets some
    expected = component("reward_scoring", number=1, **inputs)["rewards"].read_bytes()
    shares = [
        component("reward_scoring", number=1, shard=f"{n}/2", **inputs)["rewards"] for n in (1, 2)
    ]
    assert all((share / "records.parquet").is_file() for share in shares)
    joined = component("reward_scoring", number=1, shares=shares, **inputs)["rewards"]
    assert joined.read_bytes() == expected
    with pytest.raises(DataError, match="missing 2/2"):
        component("reward_scoring", number=1, shares=shares[:1], **inputs)
