"""Claims about choosing demonstrations: each rule against a plain computation of its own."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exemplar.records import Candidates, Example
from exemplar.retrieval.bm25 import bm25_candidates
from exemplar.retrieval.demonstrations import Rules, arranged, choose, demonstrations
from exemplar.retrieval.dense import dense_candidates

RANKS = st.integers(1, 12)


def ranked(size: int) -> list[float]:
    return [1 - at / 20 for at in range(size)]


def units(draw: st.DataObject, size: int) -> np.ndarray:
    """Unit vectors in the plane, at angles that are multiples of 7 degrees."""
    angles = draw.draw(st.lists(st.integers(0, 50), min_size=size, max_size=size))
    radians = np.radians([7.0 * angle for angle in angles])
    return np.stack([np.cos(radians), np.sin(radians)], axis=1)


def plain_mmr(similarities, rows, k, weight):
    """Carbonell and Goldstein's definition, by sets: the argmax over all that are left."""
    left, taken = set(range(len(rows))), []
    while left and len(taken) < k:
        value = {}
        for i in left:
            closest = max((float(np.dot(rows[i], rows[j])) for j in taken), default=0.0)
            value[i] = round(weight * similarities[i] - (1 - weight) * closest, 6)
        best = min(left, key=lambda i: (-value[i], i))
        left.remove(best)
        taken.append(best)
    return taken


@given(st.data(), RANKS, st.integers(1, 14), st.sampled_from([0.0, 0.3, 0.7, 1.0]))
def test_maximal_marginal_relevance_is_its_definition(data, size, k, weight):
    """A redundancy that is off by one step would still look diverse, and be another method."""
    rows = units(data, size)
    found = choose(ranked(size), k=k, embeddings_ND=rows, mmr_lambda=weight)
    assert found == plain_mmr(ranked(size), rows, k, weight)
    if weight == 1:
        assert found == list(range(min(k, size)))


def test_a_copy_of_a_chosen_candidate_comes_after_what_is_new():
    """That is what maximal marginal relevance is for; the case that people check by hand."""
    rows = np.array([[1, 0], [1, 0], [0, 1]], dtype=np.float32)
    assert choose([0.9, 0.9, 0.5], k=2, embeddings_ND=rows, mmr_lambda=0.5) == [0, 2]
    assert choose([0.9, 0.9, 0.5], k=2, embeddings_ND=rows, mmr_lambda=0.9) == [0, 1]


@given(st.lists(st.sampled_from(["", "a", "b", "c"]), min_size=1, max_size=12), RANKS)
def test_a_group_is_shown_once_by_its_nearest(groups, k):
    """Two questions about one passage show the LM that passage twice and nothing else."""
    found = choose(ranked(len(groups)), k=k, groups=groups)
    expected = [
        at for at, group in enumerate(groups) if not group or group not in groups[:at]
    ]  # nobody of that group comes before
    assert found == expected[:k]


@given(st.lists(st.sampled_from(["x", "y", "z"]), min_size=1, max_size=12), RANKS)
def test_labels_take_turns_nearest_first(labels, k):
    """A prompt of one label teaches that label, whatever the query says."""
    turns = []
    for at, label in enumerate(labels):
        turns.append((labels[:at].count(label), at))  # the how-manieth of its label
    found = choose(ranked(len(labels)), k=k, labels=labels)
    assert found == [at for _, at in sorted(turns)][:k]
    shown, had = Counter(labels[at] for at in found), Counter(labels)
    assert all(
        shown[one] >= shown[other] - 1 or shown[one] == had[one] for one in had for other in had
    )


@given(st.data(), RANKS, RANKS)
def test_the_rules_hold_together(data, size, k):
    """Each alone is not enough: with both on, one must not undo the other."""
    groups = data.draw(st.lists(st.sampled_from(["", "a", "b"]), min_size=size, max_size=size))
    labels = data.draw(st.lists(st.sampled_from(["x", "y"]), min_size=size, max_size=size))
    rows = units(data, size)
    found = choose(
        ranked(size), k=k, groups=groups, labels=labels, embeddings_ND=rows, mmr_lambda=0.5
    )
    named = [groups[at] for at in found if groups[at]]
    assert len(named) == len(set(named))
    assert len(found) == len(set(found))
    assert len(found) == min(k, groups.count("") + len(set(groups) - {""}))
    taken: set[str] = set()
    for at, label in enumerate(labels[i] for i in found):  # the least shown of those to be had
        counts = Counter(labels[i] for i in found[:at])
        free = [i for i in set(range(size)) - {*found[:at]} if groups[i] not in taken]
        assert counts[label] == min(counts[labels[i]] for i in free)
        taken |= {groups[found[at]]} - {""}


def test_the_order_in_the_prompt_is_the_one_asked_for():
    """The list is read from the prompt's end: one reversal too many and every order is another."""
    labels = ["no", "yes", "no", "maybe", "yes"]
    assert arranged([4, 0, 2, 1], "nearest_last", labels) == [0, 1, 2, 4]
    assert arranged([4, 0, 2, 1], "nearest_first", labels) == [4, 2, 1, 0]
    assert arranged([4, 0, 2, 1, 3], "by_label", labels) == [0, 2, 1, 4, 3]
    assert arranged([4, 0, 2, 1], "by_label", None) == [0, 1, 2, 4]


POOL = [
    Example(f"p{i}", "t", f"what is {word}", (label,), group=passage)
    for i, (word, label, passage) in enumerate(
        [
            ("red paint", "yes", "A"),
            ("red paint here", "yes", "A"),
            ("red wine", "yes", "B"),
            ("green paint", "no", ""),
            ("green wine", "no", "C"),
        ]
    )
]
QUERIES = [Example("q", "t", "what is red paint today", ("yes",))]


class Words:
    """Embeds a text by which of a few words stand in it."""

    def encode(self, texts, *, progress=None):
        words = ("red", "green", "paint", "wine", "what", "is")
        rows = np.array([[word in text.split() for word in words] for text in texts], np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("propose", [bm25_candidates, dense_candidates])
def test_groups_and_labels_are_those_of_the_pool_for_every_method(propose):
    """A rule that reads another example's group or label would choose at random."""
    encoder = [Words()] if propose is dense_candidates else []
    proposed = propose(QUERIES, POOL, *encoder, k=5)
    by_id = {example.example_id: example for example in POOL}

    def chosen(labelled=("t",), num_shots=3, **rules):
        (found,) = demonstrations(
            proposed, POOL, Rules(**rules), num_shots=num_shots, labelled_tasks=labelled
        )
        ranks = {name: at for at, name in enumerate(proposed[0].candidate_ids)}
        assert found.similarities == tuple(
            proposed[0].similarities[ranks[name]] for name in found.candidate_ids
        )
        return [by_id[name] for name in found.candidate_ids]

    assert chosen() == [by_id[name] for name in proposed[0].candidate_ids[:3]]
    assert [e.group for e in chosen(one_per_group=True)].count("A") == 1
    assert Counter(e.answer for e in chosen(balance_labels=True, num_shots=4)) == {
        "yes": 2,
        "no": 2,
    }
    together = [e.answer for e in chosen(order="by_label", balance_labels=True, num_shots=4)]
    assert sum(a != b for a, b in pairwise(together)) == 1
    # Answers that are no labels are neither balanced nor grouped.
    assert chosen((), balance_labels=True, order="by_label") == chosen()


def test_diversity_comes_from_the_pools_own_embeddings():
    """A misaligned matrix would diversify by other examples' texts, unseen."""
    proposed = dense_candidates(QUERIES, POOL, Words(), k=5)
    (found,) = demonstrations(proposed, POOL, Rules(mmr_lambda=0.4), num_shots=3)
    rows = Words().encode([e.text for e in POOL])
    order = [int(name[1:]) for name in proposed[0].candidate_ids]
    places = plain_mmr(proposed[0].similarities, rows[order], 3, 0.4)
    assert found.candidate_ids == tuple(proposed[0].candidate_ids[at] for at in sorted(places))
    assert found.candidate_ids != proposed[0].candidate_ids[:3]
    # BM25 has no embeddings: there the nearest stay.
    by_words = bm25_candidates(QUERIES, POOL, k=5)
    (kept,) = demonstrations(by_words, POOL, Rules(mmr_lambda=0.4), num_shots=3)
    assert kept == Candidates("q", by_words[0].candidate_ids[:3], by_words[0].similarities[:3])


def test_only_what_chooses_needs_more_candidates():
    """An order alone must not change which demonstrations are shown."""
    assert Rules(order="by_label").num_candidates(4) == 4
    assert Rules(one_per_group=True).num_candidates(4) == 50
    assert Rules(mmr_lambda=1.0, num_considered=2).num_candidates(4) == 4
