"""Packed prefix tries: many token sequences in one row, each shared prefix computed once.

Sequences are sorted, cut into runs, and each run becomes a `Pack`, a row of its own: the nodes of
its prefix trie in depth-first order. Rows of like length go through the model together.

A node is a token after a given prefix. In depth-first order the descendants of node t are exactly
the nodes t+1 .. ends[t]-1, so attention from a node to its ancestors, which is what a causal model
sees when it reads one sequence alone, is a simple mask. Position = depth.

No model here: token lists in, arrays out.

Legend: N sequences, B packs of a batch, T nodes of a pack (tokens of its row).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class PackCost:
    """What a row of T nodes costs, in units of one token's share of the matrix products.

    cost(T) = T + T * T / dense + fixed. `dense`: the row length at which masked attention, which
    computes all T * T pairs, costs as much as all else. `fixed`: the overhead of one more row.
    """

    dense: float
    fixed: float


@dataclass(frozen=True)
class Batch:
    """Packs as the rows of one forward pass, padded to the longest.

    `tokens`, `depths` (B, T); `visible` (B, T, T). A padding node has token 0 and depth 0 and sees
    itself alone, so that its attention has something to weigh; nothing else sees it.
    """

    packs: tuple[Pack, ...]
    tokens: IntArray
    depths: IntArray
    visible: BoolArray

    @classmethod
    def of(cls, rows: Sequence[Pack]) -> Batch:
        """Lay packs out as rows."""
        length = max(len(pack.tokens) for pack in rows)
        tokens_BT = np.zeros((len(rows), length), dtype=np.int64)
        depths_BT = np.zeros_like(tokens_BT)
        visible_BTT = np.zeros((len(rows), length, length), dtype=np.bool_)
        visible_BTT[:] = np.eye(length, dtype=np.bool_)
        for row, pack in enumerate(rows):
            size = len(pack.tokens)
            tokens_BT[row, :size] = pack.tokens
            depths_BT[row, :size] = pack.depths
            visible_BTT[row, :size, :size] = pack.visible()
        return cls(tuple(rows), tokens_BT, depths_BT, visible_BTT)


@dataclass(frozen=True)
class Pack:
    """A prefix trie of several sequences as one row, in depth-first order.

    `tokens` (T,): the token of each node. `depths` (T,): its distance from the root, the position
    that the model must see. `ends` (T,): one past its last descendant. `members`: indices of the
    sequences in the pack. `paths[i]`: the nodes that spell sequence `members[i]`.
    """

    tokens: IntArray
    depths: IntArray
    ends: IntArray
    members: tuple[int, ...]
    paths: tuple[IntArray, ...]

    def visible(self) -> BoolArray:
        """Return the mask (T, T): each node (row) sees its ancestors and itself (columns)."""
        nodes_T = np.arange(len(self.tokens))
        at_or_after_TT = nodes_T[None, :] <= nodes_T[:, None]
        result: BoolArray = at_or_after_TT & (nodes_T[:, None] < self.ends[None, :])
        return result


def packs(sequences: Sequence[Sequence[int]], *, max_nodes: int, cost: PackCost) -> Iterator[Pack]:
    """Yield packs that hold every sequence once, at the least total cost of a sorted partition.

    A pack has at most `max_nodes` nodes, except where one sequence alone is longer. Sequences that
    are equal or a prefix of another take no node of their own. Empty sequences are an error of the
    caller.
    """
    assert all(len(sequence) > 0 for sequence in sequences)
    order = sorted(range(len(sequences)), key=lambda index: tuple(sequences[index]))
    lengths = [len(sequences[index]) for index in order]
    shared = [0] + [
        _shared_prefix(sequences[before], sequences[after]) for before, after in pairwise(order)
    ]
    for start, end in _partition(lengths, shared, max_nodes, cost):
        members = order[start:end]
        yield _build(members, [sequences[index] for index in members], shared[start:end])


def _shared_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    for position, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return position
    return min(len(first), len(second))


def _partition(
    lengths: Sequence[int], shared: Sequence[int], max_nodes: int, cost: PackCost
) -> list[tuple[int, int]]:
    """Cut the sorted sequences into runs of least total cost (dynamic programme over the cuts).

    `shared[i]`: tokens that sequence i shares with the one before it. A run from a to b takes
    lengths[a] + sum over a < i < b of (lengths[i] - shared[i]) nodes: a cut at a pays shared[a]
    again, so cuts fall where little is shared.
    """
    count = len(lengths)
    shared_N = np.asarray(shared, dtype=np.int64)
    total_N = np.concatenate([[0], np.cumsum(np.asarray(lengths, dtype=np.int64) - shared_N)])
    best_N = np.zeros(count + 1)
    cut_N = np.zeros(count + 1, dtype=np.int64)
    for end in range(1, count + 1):
        # Only starts after which the run still fits; the last one alone is always allowed.
        first = min(int(np.searchsorted(total_N, total_N[end] - max_nodes)), end - 1)
        nodes = total_N[end] - total_N[first:end] + shared_N[first:end]
        costs = best_N[first:end] + nodes + nodes * nodes / cost.dense + cost.fixed
        costs[:-1][nodes[:-1] > max_nodes] = np.inf
        choice = int(costs.argmin())
        best_N[end], cut_N[end] = costs[choice], first + choice
    runs = []
    end = count
    while end > 0:
        runs.append((int(cut_N[end]), end))
        end = int(cut_N[end])
    return runs[::-1]


def _build(members: Sequence[int], sequences: Sequence[Sequence[int]], shared: list[int]) -> Pack:
    tokens: list[int] = []
    depths: list[int] = []
    ends: list[int] = []
    branch: list[int] = []  # nodes of the sequence before
    paths = []
    for number, sequence in enumerate(sequences):
        keep = shared[number] if number else 0
        for node in branch[keep:]:
            ends[node] = len(tokens)
        new = range(len(tokens), len(tokens) + len(sequence) - keep)
        branch = branch[:keep] + list(new)
        tokens.extend(sequence[keep:])
        depths.extend(range(keep, len(sequence)))
        ends.extend([-1] * len(new))
        paths.append(np.asarray(branch, dtype=np.int64))
    for node in branch:
        ends[node] = len(tokens)
    return Pack(
        np.asarray(tokens, dtype=np.int64),
        np.asarray(depths, dtype=np.int64),
        np.asarray(ends, dtype=np.int64),
        tuple(members),
        tuple(paths),
    )
