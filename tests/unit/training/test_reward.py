import pytest
import torch
from safetensors.torch import load_file, save_file

from exemplar.errors import DataError, ModelError, TrainingError
from exemplar.records import Candidates
from exemplar.training.reward import require_teacher, score_rewards, train_reward_model

SETTINGS = {
    "seed": 4,
    "round": 1,
    "batch_size": 8,
    "num_negatives": 3,
    "num_bottom": 4,
    "max_length": 48,
    "eval_fraction": 0.25,
    "dropout": 0.0,
    "num_updates": 30,
    "learning_rate": 5e-3,
    "warmup": 3,
    "eval_every": 10,
    "dtype": "float32",
}


def train(tiny_bert, world, out, **changes):
    settings = {**SETTINGS, **changes}
    examples = settings.pop("examples_by_id", world.examples_by_id)
    return train_reward_model(str(tiny_bert), examples, world.scores, out, **settings)


@pytest.fixture(scope="module")
def trained(tiny_bert, world, tmp_path_factory):
    out = tmp_path_factory.mktemp("reward") / "model"
    return out, train(tiny_bert, world, out)


def without_time(report):
    rows = [report.summary, *report.history]
    return [{name: v for name, v in row.items() if "second" not in name} for row in rows]


def test_a_learnable_preference_is_learnt(trained):
    """A loop whose parts each work can still teach nothing."""
    summary = trained[1].summary
    assert summary["before/ranking_accuracy"] < 0.3
    assert summary["held_out/ranking_accuracy"] > 0.9
    assert summary["held_out/spearman"] > summary["before/spearman"] + 0.3
    assert summary["held_out/pair_accuracy"] > 0.7
    assert summary["held_out/loss"] < 0.5 * summary["before/loss"]
    assert 0.2 < summary["held_out/chance"] < 0.5
    assert summary["num_queries"] + summary["num_held_out"] + summary["num_unused"] == 40
    assert {"held_out/ranking_accuracy/task0", "held_out/ranking_accuracy/task1"} <= set(summary)


def test_two_trainings_are_equal(trained, tiny_bert, world, tmp_path):
    """A result that cannot be repeated cannot be compared with."""
    report = train(tiny_bert, world, tmp_path / "again")
    assert without_time(report) == without_time(trained[1])
    first, second = (load_file(p / "model.safetensors") for p in (trained[0], tmp_path / "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_killed_training_continues_to_the_same_weights(trained, tiny_bert, world, tmp_path):
    """The draws of a continued run must be those of the run that was killed."""

    class Dying(dict):
        left = 10**9

        def __getitem__(self, key):
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return super().__getitem__(key)

    examples, options = Dying(world.examples_by_id), {"save_every": 7, "checkpoint": tmp_path / "s"}
    train(tiny_bert, world, tmp_path / "whole", examples_by_id=examples)
    examples.left = (10**9 - examples.left) * 2 // 3  # dies in the second half of the updates
    with pytest.raises(KeyboardInterrupt):
        train(tiny_bert, world, tmp_path / "out", examples_by_id=examples, **options)
    assert (tmp_path / "s").exists()
    assert not (tmp_path / "out").exists()
    report = train(tiny_bert, world, tmp_path / "out", **options)
    assert without_time(report) == without_time(trained[1])
    first, second = (load_file(p / "model.safetensors") for p in (trained[0], tmp_path / "out"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_rewards_follow_what_was_learnt_in_the_order_given(trained, world):
    """Rewards handed to the wrong candidate teach the retriever noise."""
    rewards = score_rewards(
        trained[0], world.examples_by_id, world.candidates, batch_tokens=200, dtype="float32"
    )
    assert [(r.query_id, r.candidate_ids) for r in rewards] == [
        (c.query_id, c.candidate_ids) for c in world.candidates
    ]
    hits = 0
    for record in rewards:
        best = record.candidate_ids[record.rewards.index(max(record.rewards))]
        hits += "good" in world.examples_by_id[best].query
    assert hits / len(rewards) > 0.9


def test_a_reward_does_not_depend_on_its_company(trained, world):
    """Otherwise shards of the same work would give other rewards than the whole."""
    few = [Candidates(c.query_id, c.candidate_ids[:2], (0.0, 0.0)) for c in world.candidates[:3]]
    options = {"batch_tokens": 500, "dtype": "float32"}
    alone = score_rewards(trained[0], world.examples_by_id, few, **options)
    together = score_rewards(trained[0], world.examples_by_id, world.candidates, **options)
    for short, long in zip(alone, together[:3], strict=True):
        assert short.rewards == pytest.approx(long.rewards[:2], abs=1e-5)


def test_a_second_round_may_start_from_the_first_one_s_head(trained, world, tmp_path):
    """A head drawn anew would throw the first round's training away."""
    report = train(trained[0], world, tmp_path / "out", num_updates=1, warmup=0, round=2)
    assert report.summary["before/ranking_accuracy"] > 0.9


def test_broken_weights_are_found_when_scoring(trained, world, tmp_path):
    """NaN rewards sort anywhere and would reach the retriever as a ranking."""
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in trained[0].iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    weights = load_file(broken / "model.safetensors")
    weights["classifier.bias"] = torch.full_like(weights["classifier.bias"], float("nan"))
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="gave nan for query 'e0'"):
        score_rewards(broken, world.examples_by_id, world.candidates)


def test_a_folder_that_is_no_reward_model_is_refused(tmp_path, tiny_bert, world):
    """Random scores from an encoder without a head look like any others."""
    with pytest.raises(ModelError, match="is no model"):
        score_rewards(tmp_path, world.examples_by_id, world.candidates)
    with pytest.raises(ModelError, match="no trained head"):
        score_rewards(tiny_bert, world.examples_by_id, world.candidates)


def test_unknown_ids_are_refused_before_any_training(tiny_bert, world, tmp_path):
    """Scores of another data set would otherwise fail after minutes, or not at all."""
    known = {k: v for k, v in world.examples_by_id.items() if k != "e3"}
    with pytest.raises(DataError, match="'e3'"):
        train(tiny_bert, world, tmp_path / "out", examples_by_id=known)
    with pytest.raises(DataError, match="'e3'"):
        score_rewards(tiny_bert, known, world.candidates)
    assert not list(tmp_path.iterdir())


def test_scores_without_any_eligible_candidate_are_one_clear_error(tiny_bert, world, tmp_path):
    """There would be nothing to learn, and an empty mean to report."""
    scores = [
        type(s)(s.query_id, s.candidate_ids, s.llm_logprobs, ("other_task",) * len(s.reasons))
        for s in world.scores
    ]
    with pytest.raises(TrainingError, match="held-out queries has both an eligible"):
        train_reward_model(
            str(tiny_bert), world.examples_by_id, scores, tmp_path / "out", **SETTINGS
        )


def test_a_weak_teacher_is_refused_with_its_figures(trained):
    """A retriever taught by chance is worse than none, and costs a round to find out."""
    require_teacher(trained[1].summary, 0.9)
    weak = {**trained[1].summary, "held_out/ranking_accuracy": 0.31, "held_out/chance": 0.25}
    with pytest.raises(TrainingError, match=r"at least 0\.400.*got 0\.310.*0\.250"):
        require_teacher(weak, 0.4)
