"""Packs end to end in one row, cut into pieces for attention.

A mask over a whole row hides most of what attention computes: of T x T pairs a trie needs those of
nodes and their ancestors. So the row is cut, in depth-first order, into pieces of Q nodes. What
came before a piece and is an ancestor of any of its nodes is an ancestor of its first node; hence
a piece sees nothing but the path to its first node, and itself: depth + Q keys instead of T.

No model here: packs in, arrays out. Legend: T nodes of the row, n pieces of a group, Q nodes of a
piece, K keys of the longest of a group.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from exemplar.lm.packing import BoolArray, IntArray, Pack

# Rows are padded to a multiple of this. oneDNN keeps a compiled product for every length that it
# has met: with a thousand lengths the memory of a long scoring grows by a third.
_MULTIPLE = 64
_LIKE = 0.75  # of a group's longest: pieces with fewer keys begin another group


@dataclass(frozen=True)
class Group:
    """Pieces with a like number of keys, padded to the same.

    `nodes` (n, Q) and `keys` (n, K): places in the row; padding repeats the first. `real` (n, Q):
    what of `nodes` is no padding. `visible` (n, Q, K): what each node sees; padding sees a key too.
    """

    nodes: IntArray
    keys: IntArray
    real: BoolArray
    visible: BoolArray


@dataclass(frozen=True)
class Line:
    """Packs end to end: `tokens` and `depths` (T,), where each pack starts, the pieces by group.

    What pads the row at its end is in no piece.
    """

    tokens: IntArray
    depths: IntArray
    starts: tuple[int, ...]
    groups: tuple[Group, ...]

    @classmethod
    def of(cls, packs: Sequence[Pack], size: int) -> Line:
        """Lay packs end to end, cut into pieces of at most `size` nodes."""
        lengths = [len(pack.tokens) for pack in packs]
        starts = np.concatenate([[0], np.cumsum(lengths)])[:-1]
        ends = np.concatenate([p.ends + start for p, start in zip(packs, starts, strict=True)])
        cut = [
            (nodes + start, keys + start)
            for pack, start in zip(packs, starts, strict=True)
            for nodes, keys in _pieces(pack, size)
        ]
        cut.sort(key=lambda piece: -len(piece[1]))
        groups, first = [], 0
        for place in range(1, len(cut) + 1):
            if place == len(cut) or len(cut[place][1]) < _LIKE * len(cut[first][1]):
                groups.append(_group(cut[first:place], size, ends))
                first = place
        padding = np.zeros(-sum(lengths) % _MULTIPLE, dtype=np.int64)
        return cls(
            np.concatenate([*(pack.tokens for pack in packs), padding]),
            np.concatenate([*(pack.depths for pack in packs), padding]),
            tuple(int(start) for start in starts),
            tuple(groups),
        )


def _pieces(pack: Pack, size: int) -> Iterator[tuple[IntArray, IntArray]]:
    """Yield the nodes of each piece, and its keys: the path to its first node, then its nodes."""
    path = np.zeros(int(pack.depths.max()) + 1, dtype=np.int64)  # the last node at each depth
    for start in range(0, len(pack.tokens), size):
        nodes = np.arange(start, min(start + size, len(pack.tokens)))
        yield nodes, np.concatenate([path[: pack.depths[start]], nodes])
        path[pack.depths[nodes]] = nodes  # of several at one depth the last stays


def _group(pieces: Sequence[tuple[IntArray, IntArray]], size: int, ends: IntArray) -> Group:
    longest = len(pieces[0][1])
    nodes_nQ = np.stack([_padded(nodes, size) for nodes, _ in pieces])
    keys_nK = np.stack([_padded(keys, longest) for _, keys in pieces])
    num_nodes = np.array([len(nodes) for nodes, _ in pieces])
    num_keys = np.array([len(keys) for _, keys in pieces])
    visible = keys_nK[:, None, :] <= nodes_nQ[:, :, None]
    visible &= nodes_nQ[:, :, None] < ends[keys_nK][:, None, :]
    visible &= (np.arange(longest) < num_keys[:, None])[:, None, :]
    return Group(nodes_nQ, keys_nK, np.arange(size) < num_nodes[:, None], visible)


def _padded(places: IntArray, length: int) -> IntArray:
    return np.concatenate([places, np.full(length - len(places), places[0])])
