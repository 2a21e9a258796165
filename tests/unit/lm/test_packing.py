"""The packed prefix trie against a brute-force one."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exemplar.lm.packing import Batch, PackCost, packs

COST = PackCost(dense=20.0, fixed=3.0)
# Two token values and short sequences: prefixes, duplicates and deep sharing are frequent.
SEQUENCES = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=6), min_size=1, max_size=12)


@settings(max_examples=80, deadline=None)
@given(SEQUENCES, st.integers(1, 30))
def test_each_sequence_is_spelt_once_by_a_path_of_distinct_prefixes(sequences, max_nodes):
    """A lost or misspelt sequence would give a candidate another candidate's score."""
    found = list(packs(sequences, max_nodes=max_nodes, cost=COST))
    assert sorted(m for pack in found for m in pack.members) == list(range(len(sequences)))
    for pack in found:
        prefixes = {}
        for member, path in zip(pack.members, pack.paths, strict=True):
            assert pack.tokens[path].tolist() == list(sequences[member])
            assert pack.depths[path].tolist() == list(range(len(path)))
            for depth, node in enumerate(path.tolist()):
                prefixes[node] = tuple(sequences[member][: depth + 1])
        assert len(set(prefixes.values())) == len(prefixes) == len(pack.tokens)
        assert len(pack.tokens) <= max(max_nodes, *(len(sequences[m]) for m in pack.members))


@settings(max_examples=80, deadline=None)
@given(SEQUENCES)
def test_a_node_sees_its_ancestors_and_itself_and_nothing_else(sequences):
    """One visible stranger and packed scores silently differ from those of the paper."""
    for pack in packs(sequences, max_nodes=100, cost=COST):
        expected = np.zeros((len(pack.tokens), len(pack.tokens)), dtype=bool)
        for path in pack.paths:
            for depth, node in enumerate(path):
                expected[node, path[: depth + 1]] = True
        np.testing.assert_array_equal(pack.visible(), expected)


def _nodes(run):
    return len(
        {tuple(sequence[:length]) for sequence in run for length in range(1, len(sequence) + 1)}
    )


@settings(max_examples=30, deadline=None)
@given(SEQUENCES.filter(lambda sequences: len(sequences) <= 7), st.integers(6, 20))
def test_the_cuts_cost_no_more_than_any_other_cuts(sequences, max_nodes):
    """Cuts through shared prefixes compute them again: the LM's tokens are the scarce resource."""

    def cost(sizes):
        return sum(size + size * size / COST.dense + COST.fixed for size in sizes)

    ordered = sorted(sequences)
    best = np.inf
    for count in range(len(ordered)):
        for cuts in combinations(range(1, len(ordered)), count):
            edges = [0, *cuts, len(ordered)]
            sizes = [_nodes(ordered[a:b]) for a, b in pairwise(edges)]
            if max(sizes) <= max_nodes:
                best = min(best, cost(sizes))
    found = [len(pack.tokens) for pack in packs(sequences, max_nodes=max_nodes, cost=COST)]
    assert cost(found) == pytest.approx(best)


def test_what_is_shared_is_computed_once_and_what_is_not_is_not_lost():
    """The saving claimed for shared candidates is a count of nodes; both ends are known."""
    roomy = PackCost(dense=1e9, fixed=1e6)
    prefix = list(range(30))
    (shared,) = packs([[*prefix, 100 + i] for i in range(8)], max_nodes=1000, cost=roomy)
    assert len(shared.tokens) == 30 + 8
    (equal,) = packs([prefix] * 8, max_nodes=1000, cost=roomy)
    assert len(equal.tokens) == 30
    (apart,) = packs([[i, *prefix] for i in range(8)], max_nodes=1000, cost=roomy)
    assert len(apart.tokens) == 8 * 31


def test_a_sequence_longer_than_a_pack_gets_one_of_its_own():
    """max_nodes bounds memory; it must not drop or split a long prompt."""
    found = list(packs([[1] * 50, [2, 3]], max_nodes=10, cost=COST))
    assert sorted(len(pack.tokens) for pack in found) == [2, 50]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=1, max_size=20),
    st.integers(8, 60),
)
def test_a_batch_pads_without_letting_anything_see_the_padding(sequences, max_nodes):
    """A node that sees padding would be scored behind tokens that no prompt holds."""
    rows = list(packs(sequences, max_nodes=max_nodes, cost=COST))
    batch = Batch.of(rows)
    assert batch.packs == tuple(rows)
    length = batch.tokens.shape[1]
    for row, pack in enumerate(rows):
        size = len(pack.tokens)
        assert batch.tokens[row, :size].tolist() == pack.tokens.tolist()
        assert batch.depths[row, :size].tolist() == pack.depths.tolist()
        expected = np.eye(length, dtype=bool)
        expected[:size, :size] = pack.visible()
        assert (batch.visible[row] == expected).all()
