"""What the C library does with memory that is freed, for a process of Exemplar's own.

A forward pass on a CPU takes and frees tens of megabytes, layer by layer. glibc returns much of it
to the system, and every page of it faults in anew: about a seventh of the time of scoring. The
whole process is concerned, so programs ask for this at their start, and the library never does.
"""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_KEPT = 1 << 30  # bytes that may stay free in the heap
_LARGEST = 1 << 25  # blocks above live outside of the heap; glibc takes no larger number


def keep_freed_memory() -> bool:
    """Let up to 1 GiB of freed memory stay with the process; return whether that is so now.

    Not where the C library is another one, or where the user tuned it (`MALLOC_...` variables).
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl and macOS lack it; Windows has no such name
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST)) and bool(mallopt(_TRIM_THRESHOLD, _KEPT))
