"""Freed memory stays with the process, where the C library can be told."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

# Layers that take 60 MB together and free it again: more than glibc keeps by itself.
PROGRAM = """
import resource, sys
import numpy as np
from exemplar.allocator import keep_freed_memory

told = keep_freed_memory() if sys.argv[1] == "keep" else False
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    layers = [np.ones(5_000_000, dtype=np.float32) for _ in range(3)]
    del layers
print(told, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(what, **environment):
    """Return what `keep_freed_memory` said in a process of its own, and the pages it touched."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", PROGRAM, what]
    done = subprocess.run(
        command, env=plain | environment, check=True, capture_output=True, text=True
    )
    told, faults = done.stdout.split()
    return told == "True", int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps its own way")
def test_pages_come_in_once_instead_of_at_every_pass():
    """Every page that goes back to the system must be cleared and mapped again."""
    (told, kept), (_, returned) = run("keep"), run("leave")
    assert told
    assert kept < returned / 5


def test_what_the_user_tuned_is_left_alone():
    """A user who sets MALLOC_ARENA_MAX or a threshold knows the machine better."""
    told, _ = run("keep", MALLOC_TRIM_THRESHOLD_="131072")
    assert not told
