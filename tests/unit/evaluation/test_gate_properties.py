"""The promotion gate over many cases: symmetric, rarely wrong, and able to see."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exemplar.evaluation.gate import decide
from exemplar.evaluation.significance import bootstrap_mean, paired_interval
from exemplar.records import Outcome

SCORES = st.one_of(st.sampled_from([0.0, 100.0]), st.floats(0, 100))
PAIRS = st.lists(st.tuples(SCORES, SCORES, st.sampled_from(["", "p", "q"])), min_size=2, max_size=9)
FEW = settings(max_examples=60, deadline=None, derandomize=True)


def outcome(task, index, score, group=""):
    return Outcome(f"{task}/{index:03}", task, group and f"{task} {group}", "", float(score), (), 0)


def sides(tasks):
    """Champion and challenger out of (score, score, group) triples by task."""
    champion, challenger = [], []
    for task, rows in tasks.items():
        for index, (before, after, group) in enumerate(rows):
            champion.append(outcome(task, index, before, group))
            challenger.append(outcome(task, index, after, group))
    return champion, challenger


def simulated(generator, lift, tasks, number, redrawn=0.4):
    """Scores by task of both: one quality, luck shared but for a part, the challenger better."""
    shape = (tasks, number)
    luck = generator.random(shape)
    other = np.where(generator.random(shape) < redrawn, generator.random(shape), luck)
    quality = generator.uniform(0.3, 0.7, size=(tasks, 1))
    champion, challenger = 100.0 * (luck < quality), 100.0 * (other < quality + lift)
    names = [f"t{task}" for task in range(tasks)]
    return dict(zip(names, champion, strict=True)), dict(zip(names, challenger, strict=True))


def promoted(lift, trials, *, tasks=5, number=40):
    """The share of simulated pairs that the gate promotes.

    Its other tests are run only where its interval, which it computes as here, lets it promote.
    """
    count, alone = 0, {f"t{task}": [""] * number for task in range(tasks)}
    for trial in range(trials):
        before, after = simulated(np.random.default_rng([trial, tasks]), lift, tasks, number)
        interval = paired_interval(before, after, alone, seed=trial, num_resamples=200)
        if interval.low > 0:
            rows = {
                task: [(a, b, "") for a, b in zip(before[task], after[task], strict=True)]
                for task in before
            }
            decision = decide(*sides(rows), num_resamples=200, seed=trial)
            assert decision.interval == interval
            count += decision.promoted
    return count / trials


@FEW
@given(st.dictionaries(st.sampled_from("abcd"), PAIRS, min_size=2), st.integers(0, 99))
def test_swapping_the_sides_flips_every_sign(tasks, seed):
    """The gate must not prefer whoever is called champion."""
    champion, challenger = sides(tasks)
    forth = decide(champion, challenger, num_resamples=100, seed=seed)
    back = decide(challenger, champion, num_resamples=100, seed=seed)
    assert back.interval.low == pytest.approx(-forth.interval.high, abs=1e-9)
    assert back.interval.high == pytest.approx(-forth.interval.low, abs=1e-9)
    assert back.wilcoxon_p == pytest.approx(forth.wilcoxon_p)
    assert not (forth.promoted and back.promoted)
    for one, other in zip(forth.tasks, back.tasks, strict=True):
        assert other.difference == pytest.approx(-one.difference, abs=1e-9)
        assert (other.p, other.p_holm) == pytest.approx((one.p, one.p_holm))


@FEW
@given(st.dictionaries(st.sampled_from("abcd"), PAIRS, min_size=2), st.integers(0, 99))
def test_a_retriever_never_replaces_itself(tasks, seed):
    """A change that changes nothing would restart every cache."""
    champion, _ = sides(tasks)
    decision = decide(champion, champion, num_resamples=100, seed=seed)
    assert not decision.promoted
    assert (decision.interval.low, decision.interval.high) == (0.0, 0.0)


@FEW
@given(st.lists(SCORES, min_size=3, max_size=30), st.integers(2, 5), st.integers(0, 99))
def test_copies_in_one_group_add_no_certainty(scores, copies, seed):
    """Ten questions on one passage that go right together are one observation, not ten."""
    single = bootstrap_mean({"a": scores}, {"a": [""] * len(scores)}, seed=seed, num_resamples=100)
    repeated = [score for score in scores for _ in range(copies)]
    groups = [f"passage {index // copies}" for index in range(len(repeated))]
    shared = bootstrap_mean({"a": repeated}, {"a": groups}, seed=seed, num_resamples=100)
    found = (shared.value, shared.low, shared.high)
    assert found == pytest.approx((single.value, single.low, single.high), abs=1e-9)


@settings(FEW, max_examples=20)
@given(st.integers(0, 10_000), st.integers(4, 8))
def test_clusters_widen_the_interval(seed, size):
    """Were they ignored, a handful of lucky passages would promote."""
    generator = np.random.default_rng(seed)
    luck = generator.integers(2, size=40)
    scores = [100.0 * value for value in luck for _ in range(size)]
    groups = [f"passage {index // size}" for index in range(len(scores))]
    alone = bootstrap_mean({"a": scores}, {"a": [""] * len(scores)}, seed=seed, num_resamples=400)
    shared = bootstrap_mean({"a": scores}, {"a": groups}, seed=seed, num_resamples=400)
    assert shared.value == alone.value
    assert shared.high - shared.low > 1.3 * (alone.high - alone.low)


def test_at_most_one_tie_in_twenty_is_promoted():
    """Each false promotion ships a change that helps nobody and restarts everyone's caches."""
    assert promoted(0.0, 1000) <= 0.05


def test_gains_are_seen_the_surer_the_larger_they_are():
    """A gate that never opens is as useless as one that is always open."""
    shares = [promoted(lift, 60) for lift in (0.0, 0.06, 0.12)]
    assert shares == sorted(shares)
    assert shares[-1] >= 0.8
    assert promoted(0.06, 60, number=120) > shares[1]  # more examples see more
