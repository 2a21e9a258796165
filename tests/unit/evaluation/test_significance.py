"""Intervals and tests, against plain computations and published figures."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exemplar.errors import DataError
from exemplar.evaluation import significance


def alone(scores):
    return {task: [""] * len(values) for task, values in scores.items()}


def two_tasks(number=200, seed=5):
    generator = np.random.default_rng(seed)
    return {
        "a": list(100.0 * (generator.random(number) < 0.3)),
        "b": list(100.0 * generator.random(number)),
    }


def plain_bootstrap(scores, groups, *, resamples, seed):
    """The two-level bootstrap as one would write it without thinking of speed."""
    generator = np.random.default_rng(seed)
    members = {
        task: [
            [score for score, own in zip(values, groups[task], strict=True) if own == group]
            for group in sorted(set(groups[task]))
        ]
        for task, values in scores.items()
    }
    means = []
    for _ in range(resamples):
        drawn = []
        for task in generator.choice(sorted(scores), size=len(scores)):
            chosen = generator.integers(len(members[task]), size=len(members[task]))
            drawn.append(np.mean([score for index in chosen for score in members[task][index]]))
        means.append(np.mean(drawn))
    return np.percentile(means, [2.5, 97.5])


@pytest.mark.parametrize("group_size", [1, 4])
def test_the_bootstrap_agrees_with_a_plain_one(group_size):
    """A wrong interval would promote or refuse retrievers for no reason."""
    scores = two_tasks(80)
    groups = {task: [f"g{i // group_size}" for i in range(80)] for task in scores}
    found = significance.bootstrap_mean(scores, groups, seed=1, num_resamples=4000)
    low, high = plain_bootstrap(scores, groups, resamples=4000, seed=2)
    assert found.value == pytest.approx(np.mean([np.mean(values) for values in scores.values()]))
    assert found.low == pytest.approx(low, abs=1.0)
    assert found.high == pytest.approx(high, abs=1.0)


@pytest.mark.parametrize("graded", [False, True])
def test_one_task_has_the_standard_error_of_its_mean(graded):
    """The two ways of drawing, counts and indices, must both be the same bootstrap."""
    generator = np.random.default_rng(3)
    values = 100 * generator.random(400)
    scores = {"a": list(values if graded else 100.0 * (values < 40))}
    found = significance.bootstrap_mean(scores, alone(scores), seed=1, num_resamples=4000)
    error = np.std(scores["a"]) / math.sqrt(400)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.06)


def test_groups_of_unequal_size_weigh_by_their_examples():
    """A passage with many questions counts as many questions, in the value and in the interval."""
    scores, groups = {"a": [100.0] * 9 + [0.0]}, {"a": ["long"] * 9 + ["short"]}
    found = significance.bootstrap_mean(scores, groups, seed=0)
    assert (found.value, found.low, found.high) == (90.0, 0.0, 100.0)


def test_shared_passages_widen_the_interval():
    """Treating questions on one passage as independent would claim a certainty not there."""
    generator = np.random.default_rng(8)
    scores = {"a": [100.0 * bool(right) for right in generator.random(100) < 0.5 for _ in range(5)]}
    shared = {"a": [f"p{i // 5}" for i in range(500)]}
    single = significance.bootstrap_mean(scores, alone(scores), seed=0)
    clustered = significance.bootstrap_mean(scores, shared, seed=0)
    ratio = (clustered.high - clustered.low) / (single.high - single.low)
    assert ratio == pytest.approx(math.sqrt(5), rel=0.15)


def test_swapping_the_sides_negates_the_interval_exactly():
    """A gate whose answer depends on which side is called champion could be played."""
    scores = two_tasks()
    champion, challenger = scores, {task: values[::-1] for task, values in scores.items()}
    groups = {task: [f"g{i // 3}" for i in range(200)] for task in scores}
    forth = significance.paired_interval(champion, challenger, groups, seed=4)
    back = significance.paired_interval(challenger, champion, groups, seed=4)
    assert (back.value, back.low, back.high) == pytest.approx(
        (-forth.value, -forth.high, -forth.low), abs=1e-9
    )


def test_the_same_seed_gives_the_same_interval_in_any_order_of_tasks():
    """A decision must not change because a dictionary was filled in another order."""
    scores = two_tasks()
    turned = dict(reversed(scores.items()))
    first = significance.bootstrap_mean(scores, alone(scores), seed=7)
    assert first == significance.bootstrap_mean(turned, alone(scores), seed=7)
    assert first != significance.bootstrap_mean(scores, alone(scores), seed=8)


@pytest.mark.parametrize(
    ("scores", "groups"),
    [
        ({}, {}),
        ({"a": []}, {"a": []}),
        ({"a": [1.0]}, {}),
        ({"a": [1.0, 2.0]}, {"a": [""]}),
        ({"a": [math.nan]}, {"a": [""]}),
    ],
)
def test_scores_that_cannot_be_averaged_are_refused(scores, groups):
    """NaN or an empty task would spread silently into the headline."""
    with pytest.raises(DataError):
        significance.bootstrap_mean(scores, groups, seed=0)


def test_mcnemar_is_the_binomial_on_the_pairs_that_differ():
    """The guards of right-or-wrong tasks rest on it."""
    champion = [0.0] * 9 + [100.0] * 2 + [100.0] * 30
    challenger = [100.0] * 9 + [0.0] * 2 + [100.0] * 30
    plain = 2 * sum(math.comb(11, k) for k in range(3)) / 2**11
    assert significance.mcnemar(champion, challenger) == pytest.approx(plain)
    assert significance.mcnemar(challenger, champion) == pytest.approx(plain)
    assert significance.mcnemar(champion, champion) == 1.0


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-5, 5), min_size=1, max_size=8))
def test_few_groups_are_flipped_in_every_way(differences):
    """A drawn p-value on a tiny task would move with the seed."""
    total = abs(sum(differences))
    every = [
        abs(sum(sign * value for sign, value in zip(signs, differences, strict=True))) >= total
        for signs in product([1, -1], repeat=len(differences))
    ]
    found = significance.sign_flip(differences, [""] * len(differences), seed=0)
    assert found == pytest.approx(np.mean(every))


def test_many_groups_flip_as_the_normal_approximation_says():
    """Drawn sign patterns must be fair and enough."""
    from scipy.stats import norm

    differences = np.random.default_rng(0).normal(0.12, 1.0, size=400)
    z = differences.sum() / math.sqrt(float(differences @ differences))
    found = significance.sign_flip(list(differences), [""] * 400, seed=0)
    assert found == pytest.approx(2 * norm.sf(abs(z)), abs=0.01)
    assert significance.sign_flip(list(-differences), [""] * 400, seed=0) == found


def test_a_group_flips_as_one():
    """Forty questions on four passages are four observations: p can not be below 2 / 2^4."""
    differences, groups = [10.0] * 40, [f"p{i // 10}" for i in range(40)]
    assert significance.sign_flip(differences, groups, seed=0) == pytest.approx(1 / 8)
    assert significance.sign_flip(differences, [""] * 40, seed=0) < 0.001


def test_holm_agrees_with_a_worked_example():
    """Without it one guard in twenty would block at random."""
    assert significance.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert significance.holm([0.9, 0.6]) == [1.0, 1.0]
    assert significance.holm([]) == []


def test_wilcoxon_leaves_out_ties():
    """Scipy refuses or warns on all zeros; a gate of unchanged tasks must still answer."""
    assert significance.wilcoxon([0.0, 0.0]) == 1.0
    assert significance.wilcoxon([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.0]) == pytest.approx(2 / 2**6)


def test_the_detectable_effect_is_found_as_often_as_promised():
    """A task that claims to see 8 points but does not would guard nothing."""
    generator, number = np.random.default_rng(1), 400
    sample = generator.normal(0, 1, size=number)
    sample = 40 * (sample - sample.mean()) / sample.std()
    effect = significance.minimum_detectable_effect(list(sample), [""] * number)
    assert effect == pytest.approx((1.96 + 0.84) * 40 / math.sqrt(number), rel=0.01)
    shifted = generator.normal(effect, 40, size=(1000, number))
    z = shifted.mean(axis=1) / (shifted.std(axis=1) / math.sqrt(number))
    assert np.mean(z > 1.96) == pytest.approx(0.8, abs=0.05)


def test_without_any_change_the_detectable_effect_is_not_zero():
    """Ten unchanged examples prove little; zero would read as a perfect guard."""
    assert significance.minimum_detectable_effect([0.0] * 100, [""] * 100) == pytest.approx(6.0)
    assert significance.minimum_detectable_effect([0.0] * 3, [""] * 3) == 100.0


def test_paper_sized_scores_stay_in_memory():
    """30 tasks of 10,000 graded examples must not ask for 2,000 x 10,000 x 30 numbers at once."""
    import tracemalloc

    generator = np.random.default_rng(0)
    scores = {f"t{i}": 100 * generator.random(10_000) for i in range(3)}
    tracemalloc.start()
    significance.bootstrap_mean(scores, alone(scores), seed=0, num_resamples=600)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 150e6
