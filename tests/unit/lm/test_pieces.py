"""Claims about pieces: every node attends to its ancestors and itself, and to nothing else."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exemplar.lm.packing import PackCost, packs
from exemplar.lm.pieces import Line

SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=14), min_size=1, max_size=16)


def seen(line):
    """Return, for every place in the row, the places that it sees; each place comes once."""
    found = {}
    for group in line.groups:
        assert group.visible.any(-1).all(), "a row that sees nothing gives NaN"
        for piece in range(len(group.nodes)):
            for place in np.flatnonzero(group.real[piece]):
                node = int(group.nodes[piece, place])
                assert node not in found
                keys = group.keys[piece][group.visible[piece, place]].tolist()
                assert len(set(keys)) == len(keys), "a key that counts twice weighs twice"
                found[node] = set(keys)
    return found


@settings(max_examples=150, deadline=None)
@given(SEQUENCES, st.integers(1, 9), st.integers(4, 60))
def test_a_node_sees_its_ancestors_and_itself(sequences, size, max_nodes):
    """One key too few or too many is another prompt, and a score that looks like any other."""
    rows = list(packs(sequences, max_nodes=max_nodes, cost=PackCost(dense=np.inf, fixed=1.0)))
    line = Line.of(rows, size)
    expected = {}
    for start, pack in zip(line.starts, rows, strict=True):
        for node, visible in enumerate(pack.visible()):
            expected[start + node] = {start + int(other) for other in np.flatnonzero(visible)}
        here = slice(start, start + len(pack.tokens))
        assert line.tokens[here].tolist() == pack.tokens.tolist()
        assert line.depths[here].tolist() == pack.depths.tolist()
    assert seen(line) == expected  # and the padding at the end is in no piece
    assert len(line.tokens) % 64 == 0 == line.tokens[len(expected) :].any()


def test_queries_behind_one_candidate_attend_to_what_they_need():
    """Sixteen queries behind a candidate would each pay for the other fifteen."""
    candidate = list(range(40))
    queries = [[*candidate, *range(100 * n, 100 * n + 30)] for n in range(1, 17)]
    (pack,) = packs(queries, max_nodes=1000, cost=PackCost(dense=np.inf, fixed=1.0))
    line = Line.of([pack], 32)
    attended = sum(group.nodes.size * group.keys.shape[1] for group in line.groups)
    assert attended < 0.25 * len(pack.tokens) ** 2


@pytest.mark.parametrize("size", [1, 32])
def test_pieces_of_unlike_depth_are_not_padded_to_the_deepest(size):
    """A single long prompt in a row of short ones would make all of them as dear as itself."""
    rows = list(packs([[1] * 900, [2] * 10, [3] * 10], max_nodes=950, cost=PackCost(1e9, -1.0)))
    line = Line.of(rows, size)
    for group in line.groups:
        assert group.keys.shape[1] <= 50 or group.visible.any(1).mean() > 0.7
