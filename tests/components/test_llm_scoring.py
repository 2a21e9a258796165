"""Claims about llm_scoring: the scores are the LM's own, of a draw that can be repeated."""

import hashlib
import json

import pytest

from exemplar import steps
from exemplar.data.io import made_from, read_records
from exemplar.errors import DataError
from exemplar.records import OTHER_LABEL, Candidates, LlmScores


@pytest.fixture(scope="module")
def scores(workspace):
    return read_records(workspace.layout.round(1) / "llm_scores.parquet", LlmScores)


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def plain_llm_logprob(model, tokenizer, prompt: str, answer: str) -> float:
    """One sequence alone through plain transformers: the mean over the answer's tokens, in nats."""
    import torch

    encoded = tokenizer(prompt + answer, return_offsets_mapping=True, add_special_tokens=False)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    places = [i for i, (_, end) in enumerate(offsets) if end > len(prompt)]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0].double()
    logprobs = torch.log_softmax(logits, dim=-1)
    return sum(float(logprobs[i - 1, ids[i]]) for i in places) / len(places)


def test_scores_are_those_of_plain_transformers_one_by_one(workspace, tiny_models, scores):
    """Everything downstream is learnt from these numbers; packing must not change them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_models.lm, dtype="float32").eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_models.lm)
    pool = workspace.dataset.pool_by_id
    for item in scores[::5]:
        query = pool[item.query_id]
        for name, found in list(zip(item.candidate_ids, item.llm_logprobs, strict=True))[:3]:
            candidate = pool[name]
            prompt = f"{candidate.query}\n{candidate.answers[0]}\n\n{query.query}\n"
            expected = plain_llm_logprob(model, tokenizer, prompt, query.answers[0])
            assert found == pytest.approx(expected, abs=1e-4)


def test_every_query_has_a_draw_from_its_candidates_in_their_order(workspace, scores):
    """A draw outside the candidates, or in another order, would break shards and reruns."""
    proposed = {
        item.query_id: item.candidate_ids
        for item in read_records(workspace.layout.round(1) / "candidates.parquet", Candidates)
    }
    assert [item.query_id for item in scores] == list(proposed)
    for item in scores:
        assert len(item.candidate_ids) == workspace.profile.llm_scoring.num_candidates
        places = [proposed[item.query_id].index(name) for name in item.candidate_ids]
        assert places == sorted(places)
    assert len({tuple(map(proposed[i.query_id].index, i.candidate_ids)) for i in scores}) > 5


def test_a_candidate_with_another_label_cannot_be_a_positive(workspace, scores):
    """The rule of the paper's code; in other kinds of tasks there are no labels to compare."""
    pool = workspace.dataset.pool_by_id
    seen = set()
    for item in scores:
        query = pool[item.query_id]
        labelled = query.task == "library_slips"
        for name, reason in zip(item.candidate_ids, item.reasons, strict=True):
            expected = OTHER_LABEL if labelled and pool[name].answers != query.answers else ""
            assert reason == expected
            seen.add((query.task, reason))
    assert ("library_slips", OTHER_LABEL) in seen
    assert ("library_slips", "") in seen


def test_the_file_names_the_data_and_candidates_it_was_made_from(workspace):
    """Scores of other candidates would be read as if nothing had happened."""
    for number in (1, 2):
        folder = workspace.layout.round(number)
        assert made_from(folder / "llm_scores.parquet") == {
            "data": workspace.dataset.fingerprint,
            "candidates": sha256(folder / "candidates.parquet"),
        }


def test_again_the_same_pairs_and_scores(workspace, tmp_path, scores):
    """Equal inputs with other outputs would make every later difference unexplainable."""
    arguments = {
        "data": workspace.layout.data,
        "candidates": workspace.layout.round(1) / "candidates.parquet",
        "out": tmp_path / "again.parquet",
    }
    figures = steps.llm_scoring(workspace.profile, number=1, **arguments)
    again = read_records(tmp_path / "again.parquet", LlmScores)
    assert [(i.candidate_ids, i.reasons) for i in again] == [
        (i.candidate_ids, i.reasons) for i in scores
    ]
    for new, old in zip(again, scores, strict=True):
        assert new.llm_logprobs == pytest.approx(old.llm_logprobs, abs=1e-6)
    assert figures["sequences"] == sum(len(item.candidate_ids) for item in scores)
    assert 0 < figures["tokens_computed"] < figures["tokens"]


def test_each_round_draws_anew(workspace, tmp_path, scores):
    """Drawing the same places every round would never look at the other candidates."""
    steps.llm_scoring(
        workspace.profile,
        data=workspace.layout.data,
        candidates=workspace.layout.round(1) / "candidates.parquet",
        out=tmp_path / "two.parquet",
        number=2,
    )
    other = read_records(tmp_path / "two.parquet", LlmScores)
    assert [item.candidate_ids for item in other] != [item.candidate_ids for item in scores]


def test_the_component_writes_the_same_scores_alone_and_in_shares(
    workspace, component, monkeypatch, tmp_path
):
    """Shards must not change a result, nor may a share that is missing go unnoticed."""
    folder = workspace.layout.round(1)
    inputs = {"data": workspace.layout.data, "candidates": folder / "candidates.parquet"}
    expected = (folder / "llm_scores.parquet").read_bytes()
    alone = component("llm_scoring", number=1, **inputs)
    assert alone["llm_scores"].read_bytes() == expected
    shares = []
    for number in (3, 1, 2):
        monkeypatch.setenv("HOME", str(tmp_path / f"pod-{number}"))  # they see no common folder
        made = component("llm_scoring", number=1, shard=f"{number}/3", **inputs)
        shares.append(made["llm_scores"])
    monkeypatch.setenv("HOME", str(tmp_path / "pod-4"))
    with pytest.raises(DataError, match="missing 3/3"):
        component("llm_scoring", number=1, shares=shares[1:], **inputs)
    with pytest.raises(DataError, match="share of another work"):
        component("llm_scoring", number=2, shares=shares, **inputs)
    joined = component("llm_scoring", number=1, shares=shares, **inputs)
    assert joined["llm_scores"].read_bytes() == expected
    assert json.loads(joined["figures"].read_text())["parts"] == 0  # nothing was scored again


def test_another_try_goes_on_from_the_parts_on_the_volume(workspace, component, tmp_path):
    """A pod is lost with its disk; three days of scoring must not be."""
    folder = workspace.layout.round(1)
    inputs = {"data": workspace.layout.data, "candidates": folder / "candidates.parquet"}
    whole = json.loads(component("llm_scoring", number=1, **inputs)["figures"].read_text())
    lost = component("llm_scoring", number=1, shard="1/2", **inputs)
    done = json.loads(lost["figures"].read_text())["parts"]
    assert 0 < done < whole["parts"]
    again = component("llm_scoring", number=1, **inputs)
    assert json.loads(again["figures"].read_text())["parts"] == whole["parts"] - done
    expected = (folder / "llm_scores.parquet").read_bytes()
    assert again["llm_scores"].read_bytes() == expected
    assert not list((tmp_path / ".cache/exemplar/work").iterdir())
