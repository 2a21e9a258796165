"""The promotion gate: what it lets through, what it stops, and how often it errs."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from exemplar.errors import DataError
from exemplar.evaluation.gate import decide, decide_from_means
from exemplar.records import Outcome

PUBLISHED = Path(__file__).parents[2] / "published" / "llm_r_table_10.csv"


def published(column):
    """The scores of one retriever on the paper's 30 tasks, by task."""
    lines = PUBLISHED.read_text(encoding="utf-8").splitlines()
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    return {row["task"]: float(row[column]) for row in rows}


def outcomes(scores_by_task, group_size=1):
    return [
        Outcome(
            example_id=f"{task}/{index}",
            task=task,
            group=f"{task} passage {index // group_size}" if group_size > 1 else "",
            prediction="",
            score=float(score),
            demonstration_ids=(),
            num_dropped=0,
        )
        for task, scores in scores_by_task.items()
        for index, score in enumerate(scores)
    ]


def simulated(generator, lifts, number=60, noise=0.4):
    """Champion and challenger of the same true quality apart from the lift, paired by example."""
    champion, challenger = {}, {}
    for task, lift in lifts.items():
        luck = generator.random(number)
        redrawn = np.where(generator.random(number) < noise, generator.random(number), luck)
        champion[task] = 100.0 * (luck < 0.5)
        challenger[task] = 100.0 * (redrawn < 0.5 + lift)
    return outcomes(champion), outcomes(challenger)


def flat(lift, tasks=6):
    return {f"t{index}": lift for index in range(tasks)}


def test_it_accepts_the_papers_first_round():
    """A gate that refuses a gain on 24 of 30 tasks would never promote anything."""
    decision = decide_from_means(published("epr"), published("round_1"))
    assert decision.promoted
    assert decision.interval.value == pytest.approx(2.17, abs=0.005)
    assert decision.interval.low == pytest.approx(0.93, abs=0.1)
    assert decision.interval.high == pytest.approx(3.56, abs=0.1)
    assert decision.wilcoxon_p == pytest.approx(0.0034, abs=0.0001)


def test_it_refuses_the_papers_second_round():
    """The published +0.77 may be chance: promoting on averages alone would have shipped it."""
    decision = decide_from_means(published("round_1"), published("round_2"))
    assert not decision.promoted
    assert decision.interval.low < 0 < decision.interval.value
    assert decision.wilcoxon_p == pytest.approx(0.166, abs=0.001)
    assert "17 rise, 12 fall and 1 stay" in " ".join(decision.reasons)


def test_few_means_are_not_enough():
    """Three differences on one side happen by chance once in four."""
    with pytest.raises(DataError, match="6 or more"):
        decide_from_means({"a": 1.0, "b": 1.0}, {"a": 2.0, "b": 2.0})


def test_it_promotes_a_clear_gain_and_says_why():
    """The decision is read by people; figures alone leave them guessing."""
    champion, challenger = simulated(np.random.default_rng(0), flat(0.2))
    decision = decide(champion, challenger, num_resamples=1000)
    assert decision.promoted
    assert decision.headline.startswith("Promoted. The mean over 6 tasks goes from")
    assert decision.challenger - decision.champion == pytest.approx(decision.interval.value)
    assert decision.num_examples == 360


def test_a_significant_fall_on_a_guarded_task_blocks():
    """A better mean can hide a task that got much worse, as SQuAD does in the paper."""
    champion, challenger = simulated(
        np.random.default_rng(1), {**flat(0.25, tasks=9), "squad": -0.3}, number=120
    )
    decision = decide(champion, challenger, margin=2.0, num_resamples=1000)
    rows = {change.task: change for change in decision.tasks}
    assert decision.interval.low > 0
    assert not decision.promoted
    assert rows["squad"].verdict == "blocked"
    assert decision.reasons[0].startswith("squad falls by")
    unguarded = decide(
        champion, challenger, guarded_tasks=["t0", "t1"], margin=2.0, num_resamples=1000
    )
    assert unguarded.promoted
    assert {row.verdict for row in unguarded.tasks if row.task == "squad"} == {"not guarded"}
    lenient = decide(champion, challenger, margin=60.0, num_resamples=1000)
    assert lenient.promoted
    assert {row.verdict for row in lenient.tasks if row.task == "squad"} == {"fell"}


def test_the_order_of_outcomes_changes_nothing():
    """Files written by another number of workers must give the same decision."""
    champion, challenger = simulated(np.random.default_rng(3), flat(0.1))
    expected = decide(champion, challenger, num_resamples=300)
    assert decide(champion[::-1], challenger, num_resamples=300) == expected
    assert decide(champion, challenger[::-1], num_resamples=300) == expected


def test_shared_passages_are_tested_as_groups():
    """McNemar on questions that share a passage would block or pass on far too little."""
    right = np.repeat(np.arange(12) % 3 > 0, 10)
    champion = {"squad": 100.0 * right, "b": [0.0, 100.0] * 60}
    challenger = {"squad": 100.0 * ~right, "b": [0.0, 100.0] * 60}
    single = decide(outcomes(champion), outcomes(challenger), num_resamples=500)
    shared = decide(outcomes(champion, 10), outcomes(challenger, 10), num_resamples=500)
    rows = {change.task: change for change in single.tasks}
    clustered = {change.task: change for change in shared.tasks}
    assert (rows["squad"].test, clustered["squad"].test) == ("McNemar", "sign flip")
    assert rows["squad"].p < 0.001 < 0.05 < clustered["squad"].p
    assert clustered["squad"].minimum_detectable > 2 * rows["squad"].minimum_detectable


def test_another_test_set_is_refused_with_the_counts():
    """Two averages over different examples differ for reasons that are not the retriever."""
    champion, challenger = simulated(np.random.default_rng(4), flat(0.0))
    with pytest.raises(DataError, match="1 examples only with the champion, 0 only with the chal"):
        decide(champion, challenger[1:])
    moved = [replace(challenger[0], task="t1"), *challenger[1:]]
    with pytest.raises(DataError, match="1 of which under another task or group"):
        decide(champion, moved)
    with pytest.raises(DataError, match="occurs twice"):
        decide(champion, [*challenger, challenger[0]])
    with pytest.raises(DataError, match="0 with both"):
        decide([], [])


def test_a_guard_that_would_never_look_is_refused():
    """A misspelt task name in the settings must not switch its guard off."""
    champion, challenger = simulated(np.random.default_rng(5), flat(0.0))
    with pytest.raises(DataError, match="squat"):
        decide(champion, challenger, guarded_tasks=["squat"])


def test_one_observation_decides_nothing():
    """An interval of no width would promote on a single lucky passage."""
    champion, challenger = {"a": [0.0, 0.0]}, {"a": [100.0, 100.0]}
    with pytest.raises(DataError, match="single group"):
        decide(outcomes(champion, 2), outcomes(challenger, 2))


@pytest.mark.parametrize("settings", [{"margin": -1.0}, {"alpha": 0.0}, {"margin": float("nan")}])
def test_senseless_settings_are_refused(settings):
    """A negative margin would block rises."""
    champion, challenger = simulated(np.random.default_rng(6), flat(0.0))
    with pytest.raises(DataError):
        decide(champion, challenger, **settings)


def test_the_stored_report_is_whole_and_readable():
    """The registry keeps JSON and Markdown; either must be enough to follow the decision."""
    champion, challenger = simulated(np.random.default_rng(7), {**flat(0.1), "a|b": 0.0})
    decision = decide(champion, challenger, num_resamples=300)
    stored = json.loads(json.dumps(decision.to_dict(), allow_nan=False))
    assert stored["promoted"] is decision.promoted
    assert stored["interval"]["low"] == decision.interval.low
    assert [row["task"] for row in stored["tasks"]] == [row.task for row in decision.tasks]
    text = decision.markdown()
    assert all(f"- {reason}" in text for reason in decision.reasons)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in rows}) == 1
