import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from exemplar.training.figures import (
    agreement_at,
    chance_of_picking,
    pair_accuracy,
    picks_positive,
    spearman,
)

values = st.integers(-4, 4).map(float)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(values, values), min_size=2, max_size=12))
def test_spearman_equals_scipy_s(pairs):
    """Ties are common in short lists; broken by position they would count as agreement."""
    left, right = zip(*pairs, strict=True)
    if len(set(left)) == 1 or len(set(right)) == 1:
        assert spearman(left, right) == 0
    else:
        assert spearman(left, right) == pytest.approx(spearmanr(left, right).statistic, abs=1e-12)


def test_a_tie_is_no_success():
    """A model that gives every candidate the same score would be perfect otherwise."""
    assert picks_positive([2.0, 1.0, 0.0], 0, [1, 2])
    assert not picks_positive([1.0, 1.0, 0.0], 0, [1, 2])


def test_chance_counts_repeated_negatives_once():
    """A repeated negative is not one more way to fail."""
    assert chance_of_picking([1, 2, 3]) == pytest.approx(1 / 4)
    assert chance_of_picking([1, 1, 1]) == pytest.approx(1 / 2)


def test_pair_accuracy_counts_pairs_by_hand():
    """Counted the wrong way round a perfect model looks worthless."""
    assert pair_accuracy([3.0, 1.0, 2.0], [0, 2, 1]) == 1
    assert pair_accuracy([3.0, 1.0, 2.0], [1, 2, 0]) == 0
    assert pair_accuracy([5.0, 5.0, 5.0], [0, 1, 2]) == 0.5
    assert pair_accuracy([1.0, 3.0, 2.0], [1, 0, 2]) == pytest.approx(2 / 3)


def test_agreement_looks_at_the_nearest_only():
    """Over all candidates it would not depend on the model at all."""
    assert agreement_at([0.9, 0.1, 0.8], [True, True, False], 2) == 0.5
    assert agreement_at([0.9], [True], 5) == 1
