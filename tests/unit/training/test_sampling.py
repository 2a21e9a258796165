import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exemplar.errors import DataError, TrainingError
from exemplar.records import OTHER_LABEL, Example, LlmScores, Rewards
from exemplar.training.sampling import (
    Batches,
    contrast_group,
    distill_group,
    epoch_batches,
    llm_ranking,
    require_examples,
    reward_group,
    split_held_out,
)

SIZES = {"num_top": 3, "num_bottom": 16, "num_negatives": 7}


def llm_scores(logprobs, ineligible=()):
    return LlmScores(
        "q",
        tuple(f"c{i}" for i in range(len(logprobs))),
        tuple(logprobs),
        tuple(OTHER_LABEL if i in ineligible else "" for i in range(len(logprobs))),
    )


def example(number, task="t", answer="yes"):
    return Example(f"{task}-{number}", task, f"query {number}", (answer,))


def test_the_ineligible_rank_below_every_eligible_candidate():
    """A right answer drawn out by a wrong-label demonstration must not become a positive."""
    assert llm_ranking(llm_scores([-1, -5, -0.1, -2], ineligible=[2])) == [0, 3, 1, 2]


@settings(max_examples=200, deadline=None)
@given(
    logprobs=st.lists(st.floats(-9, 0), min_size=1, max_size=40),
    seed=st.integers(0, 5),
    data=st.data(),
)
def test_reward_groups_keep_their_promises(logprobs, seed, data):
    """A negative that ranks above its positive teaches the opposite of what the LM said."""
    ineligible = data.draw(st.sets(st.integers(0, len(logprobs) - 1)))
    scores = llm_scores(logprobs, ineligible)
    group = reward_group(scores, random.Random(seed), **SIZES)
    if group is None:
        assert len(ineligible) == len(logprobs) or len(logprobs) == 1
        return
    positive, negatives = group
    ranking = llm_ranking(scores)
    assert positive in ranking[:3]
    assert positive not in ineligible
    assert len(negatives) == 7
    assert set(negatives) <= set(ranking[-16:])
    assert all(ranking.index(positive) < ranking.index(negative) for negative in negatives)


def test_negatives_repeat_only_where_there_are_too_few():
    """Needless repeats throw scored candidates away."""
    many = reward_group(llm_scores([-i for i in range(20)]), random.Random(0), **SIZES)
    few = reward_group(llm_scores([-i for i in range(5)]), random.Random(0), **SIZES)
    assert len(set(many[1])) == 7
    positive, negatives = few
    assert set(negatives) == set(range(positive + 1, 5))


def test_whether_a_query_gives_a_group_does_not_depend_on_the_draw():
    """Batches are laid out once; a query without a group in some epochs would break them."""
    scores = llm_scores([-1, -2, -3], ineligible=[1, 2])
    groups = [reward_group(scores, random.Random(seed), **SIZES) for seed in range(50)]
    assert all(group is not None and group[0] == 0 for group in groups)


def test_all_top_candidates_are_drawn_in_time():
    """A draw that always takes the first would train on a third of what was scored."""
    scores = llm_scores([-i for i in range(32)])
    drawn = [reward_group(scores, random.Random(seed), **SIZES) for seed in range(300)]
    assert {group[0] for group in drawn} == {0, 1, 2}
    assert {index for group in drawn for index in group[1]} == set(range(16, 32))


def test_distillation_leaves_negatives_of_the_query_s_label_out():
    """They help the LM: pushed away, the retriever would unlearn the label."""
    answers = ["yes", "no", "yes", "no", "yes"]
    pool = {f"c{i}": Example(f"c{i}", "t", f"text {i}", (a,)) for i, a in enumerate(answers)}
    rewards = Rewards("q", tuple(pool), (5.0, 4.0, 3.0, 2.0, 1.0))
    query = Example("q", "t", "query", ("yes",))
    for seed in range(50):
        positive, negatives = distill_group(
            rewards, pool, query, random.Random(seed), drop_same_label=True
        )
        assert positive in (0, 1, 2)
        assert {answers[i] for i in negatives} == {"no"}
        assert all(i > positive for i in negatives)
        assert len(negatives) == 3


def test_distillation_gives_no_group_where_every_candidate_has_the_label():
    """Without a negative the softmax is constant and the query would only cost time."""
    pool = {f"c{i}": Example(f"c{i}", "t", f"text {i}", ("yes",)) for i in range(4)}
    rewards = Rewards("q", tuple(pool), (5.0, 4.0, 3.0, 2.0))
    query = Example("q", "t", "query", ("yes",))
    draw = random.Random(0)
    assert distill_group(rewards, pool, query, draw, drop_same_label=True) is None
    assert distill_group(rewards, pool, query, draw, drop_same_label=False) is not None


def test_distillation_draws_from_the_top_three_and_the_bottom_sixteen():
    """Other ranges are another method than the paper's."""
    pool = {f"c{i}": example(i) for i in range(40)}
    rewards = Rewards("q", tuple(pool), tuple(float(-i) for i in range(40)))
    drawn = [distill_group(rewards, pool, example(99), random.Random(s)) for s in range(400)]
    assert {group[0] for group in drawn} == {0, 1, 2}
    assert {index for group in drawn for index in group[1]} == set(range(24, 40))


def test_contrast_takes_its_positive_from_what_the_lm_prefers_and_may():
    """Without a reward model between, a wrong label must still never be a positive."""
    pool = {f"c{i}": example(i, answer="yes" if i % 2 else "no") for i in range(40)}
    scores = llm_scores([float(-i) for i in range(40)], ineligible=range(0, 40, 2))
    rule = {"num_top": 2, "num_bottom": 5, "num_negatives": 3}
    drawn = [contrast_group(scores, pool, example(99), random.Random(s), **rule) for s in range(99)]
    assert {group[0] for group in drawn} == {1, 3}
    assert {index for group in drawn for index in group[1]} == {30, 32, 34, 36, 38}
    alike = {name: example(name, answer="yes") for name in pool}
    rule["drop_same_label"] = True
    assert contrast_group(scores, alike, example(99), random.Random(0), **rule) is None
    none_eligible = llm_scores([-1.0, -2.0], ineligible=[0, 1])
    assert contrast_group(none_eligible, pool, example(99), random.Random(0)) is None


def test_held_out_queries_are_the_same_whatever_the_order():
    """A query held out in one round and trained on in the next makes figures too good."""
    queries = [example(i, task) for task in ("a", "b") for i in range(20)]
    train, held_out = split_held_out(queries, 0.1, seed=3)
    again = split_held_out(queries[::-1], 0.1, seed=3)[1]
    assert {query.example_id for query in held_out} == {query.example_id for query in again}
    assert [query.task for query in held_out] == ["a", "a", "b", "b"]
    assert sorted([*train, *held_out], key=lambda query: query.example_id) == sorted(
        queries, key=lambda query: query.example_id
    )
    assert held_out != split_held_out(queries, 0.1, seed=4)[1]


def test_every_task_of_two_queries_holds_one_out_and_none_loses_all():
    """A task unseen in the held-out figures can go wrong unnoticed."""
    queries = [example(0, "one"), example(0, "two"), example(1, "two")]
    train, held_out = split_held_out(queries, 0.01, seed=0)
    assert [query.task for query in held_out] == ["two"]
    assert [query.task for query in train] == ["one", "two"]


def test_the_number_held_out_is_bounded():
    """At paper size a tenth of everything would be scored after every few updates."""
    queries = [example(i, f"t{i % 4}") for i in range(2000)]
    assert len(split_held_out(queries, 0.5, seed=0, most=100)[1]) == 100


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1])
def test_a_fraction_that_holds_nothing_or_all_out_is_refused(fraction):
    """Nothing held out: no figure tells whether training helped."""
    with pytest.raises(TrainingError, match="eval_fraction"):
        split_held_out([example(i) for i in range(9)], fraction, seed=0)
    with pytest.raises(TrainingError, match="one to hold out"):
        split_held_out([example(0)], 0.5, seed=0)


def test_an_epoch_shows_no_query_twice_and_only_whole_batches():
    """The same query twice in a batch would be its own negative."""
    queries = [example(i) for i in range(21)]
    batches = epoch_batches(queries, 8, random.Random(0))
    shown = [query.example_id for batch in batches for query in batch]
    assert [len(batch) for batch in batches] == [8, 8]
    assert len(set(shown)) == 16
    assert [len(batch) for batch in epoch_batches(queries[:5], 8, random.Random(0))] == [5]


def test_homogeneous_batches_hold_one_task_each():
    """A mixed batch makes in-batch negatives easy, which is what the switch is to avoid."""
    queries = [example(i, f"t{i % 3}") for i in range(60)]
    batches = epoch_batches(queries, 8, random.Random(0), homogeneous=True)
    assert all(len({query.task for query in batch}) == 1 for batch in batches)
    assert {batch[0].task for batch in batches} == {"t0", "t1", "t2"}


@pytest.mark.parametrize("homogeneous", [False, True])
def test_batches_depend_on_the_update_alone(homogeneous):
    """A training that continues must see what it would have seen."""
    queries = [example(i, f"t{i % 3}") for i in range(25)]
    whole = Batches(queries, 4, 1, "x", homogeneous=homogeneous)
    in_order = [whole.at(update) for update in range(40)]
    continued = Batches(queries, 4, 1, "x", homogeneous=homogeneous)
    assert [continued.at(update) for update in range(17, 40)] == in_order[17:]
    assert in_order[0][1] != next(batch for epoch, batch in in_order if epoch == 1)
    assert Batches(queries, 4, 2, "x").at(0) != Batches(queries, 4, 1, "x").at(0)


def test_no_usable_query_is_one_clear_error():
    """Otherwise the first batch fails with a division by zero."""
    with pytest.raises(TrainingError, match="no query to train on"):
        Batches([], 4, 0)


def test_unknown_examples_are_named():
    """Files of different data sets joined by id would train on the wrong texts."""
    with pytest.raises(DataError, match="'c0'"):
        require_examples({"q": example(0)}, [llm_scores([-1.0])])
