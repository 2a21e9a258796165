"""Greedy decoding constrained to labels, as plain data: which logits it needs, what follows.

The token sequences of prompt + label, one a label, form a small tree. Greedy decoding walks it
from the prompt; it has a choice only where the tree branches. A sequence that ends at a node which
others pass through adds the option `END`: stop here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

END = -1
"""Option at a branching: the label is complete, nothing of it follows."""

Prefix = tuple[int, ...]


def branchings(sequences: Sequence[Sequence[int]]) -> list[tuple[Prefix, list[int]]]:
    """Return the prefixes after which the sequences part, each with its options (token or `END`).

    Where the labels' first tokens all differ, that is one prefix: the prompt. Options keep the
    order of the sequences, so that a tie goes to the label given first.
    """
    shortest = min(len(sequence) for sequence in sequences)
    common = 0
    while common < shortest and len({sequence[common] for sequence in sequences}) == 1:
        common += 1
    found: dict[Prefix, dict[int, None]] = {}
    for sequence in sequences:
        for length in range(common, len(sequence) + 1):
            found.setdefault(tuple(sequence[:length]), {})[_option(sequence, length)] = None
    return [(prefix, list(options)) for prefix, options in found.items() if len(options) > 1]


def descend(sequences: Sequence[Sequence[int]], choose: Callable[[Prefix, list[int]], int]) -> int:
    """Return the index of the label that greedy decoding arrives at.

    `choose(prefix, options)` returns the likeliest option of a branching.
    """
    alive = list(range(len(sequences)))
    depth = 0
    while len(alive) > 1:
        options = list(dict.fromkeys(_option(sequences[index], depth) for index in alive))
        option = options[0]
        if len(options) > 1:
            option = choose(tuple(sequences[alive[0]][:depth]), options)
        alive = [index for index in alive if _option(sequences[index], depth) == option]
        if option == END:
            break
        depth += 1
    return alive[0]


def _option(sequence: Sequence[int], length: int) -> int:
    return sequence[length] if length < len(sequence) else END
