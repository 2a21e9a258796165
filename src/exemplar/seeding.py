"""Seeds derived from names, so that every draw is the same on every machine.

A draw is seeded by what it is for, e.g. `rng(seed, "llm_scoring", round, query_id)`: it depends
neither on the order of work nor on the number of workers, and never on global state or on
Python's salted `hash()`.
"""

import hashlib
import random

_SEPARATOR = "\x1f"  # ASCII unit separator: ("a", "bc") and ("ab", "c") stay different


def derive_seed(*parts: object) -> int:
    """Return a 63-bit seed, the head of the sha256 of the parts' texts."""
    text = _SEPARATOR.join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def rng(*parts: object) -> random.Random:
    """Return a generator of its own, seeded by `derive_seed(*parts)`."""
    return random.Random(derive_seed(*parts))
