"""Texts as 64-bit digests, so that millions of them can be told apart in little memory.

Among 6.3 million texts two share a digest with a probability of one in a million.
"""

from __future__ import annotations

import hashlib
from array import array

_FEWEST_SLOTS = 1 << 10
_EMPTY = 0


def digest(text: str) -> int:
    """Return the 64-bit digest of a text, never 0."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") or 1


class DigestSet:
    """A set of texts that keeps their digests alone: 12 to 24 bytes a text."""

    def __init__(self) -> None:
        # A table with open addressing; a Python set of integers takes 60 to 100 bytes each.
        self._slots = array("Q", bytes(8 * _FEWEST_SLOTS))
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, text: str) -> bool:
        return self._slots[self._find(digest(text))] != _EMPTY

    def add(self, text: str) -> bool:
        """Add a text; return whether it is new."""
        key = digest(text)
        slot = self._find(key)
        if self._slots[slot] != _EMPTY:
            return False
        self._slots[slot] = key
        self._count += 1
        if 3 * self._count > 2 * len(self._slots):
            self._grow()
        return True

    def _find(self, key: int) -> int:
        """Return the slot that holds `key`, or the empty one where it belongs."""
        slots, last = self._slots, len(self._slots) - 1
        slot = key & last
        while slots[slot] != _EMPTY and slots[slot] != key:
            slot = (slot + 1) & last
        return slot

    def _grow(self) -> None:
        old, self._slots = self._slots, array("Q", bytes(16 * len(self._slots)))
        for key in old:
            if key != _EMPTY:
                self._slots[self._find(key)] = key
