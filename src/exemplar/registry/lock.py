"""One process at a time moves the aliases of a registered model.

MLflow has no locks, but each of its stores refuses a second registered model of one name, whoever
asks, from wherever. So the lock is an empty registered model, `<name>.moving`, which exists while
aliases move. A process that is killed leaves it behind: whoever has seen the same holder for a
whole lease takes the lock over, by renaming it to the holder's own name, which again only one can
do. Leases are measured on the clock of the one who waits, so clocks need not agree.

Before each write a holder of half a lease or more looks whether the lock is still its own, and
renews it. One that was suspended for a whole lease between that and the write could still write
late; nothing in MLflow prevents it.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from exemplar.errors import RegistryError
from exemplar.tracking.store import explained

if TYPE_CHECKING:
    from exemplar.tracking.store import Store

LEASE_S = 30.0
"""A move takes a second or two; a holder seen for longer than this is taken for dead."""

_HOLDER = "exemplar.holder"
_POLL_S = (0.02, 1.0)  # first and longest pause between two looks
_LEASES = 4.0  # how many leases a process waits in all, while others come and go
_WHAT = (
    "A lock of Exemplar: the aliases of the model of this name are being moved. It goes when they "
    "are; one left by a killed process is removed by the next promotion or rollback."
)


@dataclass
class Lock:
    """A lock that this process holds. `since`: when it was taken or renewed, on its own clock."""

    store: Store
    name: str
    holder: str
    lease_s: float
    since: float

    def check(self) -> None:
        """Renew a lock of half a lease; raise `RegistryError` where another has taken it over.

        Before that nobody can have: their lease began when this one did, or later.
        """
        if time.monotonic() - self.since < self.lease_s / 2:
            return
        found = _holder(self.store, self.name)
        if found != self.holder:
            raise RegistryError(
                f"Moving aliases took longer than the lock's lease, and {found or 'nobody'} holds "
                f"{self.name!r} now. Nothing more is written; run the command again."
            )
        self.since, self.holder = time.monotonic(), _new_holder()
        self.store.client.set_registered_model_tag(self.name, _HOLDER, self.holder)


@contextmanager
def held(store: Store, model: str, *, lease_s: float = LEASE_S) -> Iterator[Lock]:
    """Hold the lock of a registered model while the block runs.

    Waits for another holder at most four leases; then raises `RegistryError` that names it.
    """
    lock = Lock(store, f"{model}.moving", _new_holder(), lease_s, time.monotonic())
    with explained(f"locking the aliases of {model!r} in {store.place}"):
        left = _acquire(lock)
    yield lock
    # A block that failed keeps the lock, as one that was killed does: what it was about to write is
    # unknown to others until they finish it, and they wait a lease before they do.
    with explained(f"unlocking the aliases of {model!r} in {store.place}"):
        lock.check()
        store.client.delete_registered_model(lock.name)
        for name in left:
            store.client.delete_registered_model(name)


def _new_holder() -> str:
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(6)}"


def _acquire(lock: Lock) -> list[str]:
    """Take the lock; return the names of dead holders' locks that were moved aside."""
    started = since = time.monotonic()
    seen, pause, left = "", _POLL_S[0], list[str]()
    while not _created(lock):
        current = _holder(lock.store, lock.name)
        now = time.monotonic()
        if current != seen:
            seen, since = current, now
        if seen and now - since >= lock.lease_s:
            aside = f"{lock.name}.{seen.replace(':', '-')}"
            if _renamed(lock, aside):
                left.append(aside)
            seen = ""
            continue
        if now - started > max(_LEASES * lock.lease_s, 1.0):
            raise RegistryError(
                f"The aliases are being moved by others all the time, now by {current or 'nobody'} "
                f"(registered model {lock.name!r}). Run the command again."
            )
        time.sleep(min(pause, _POLL_S[1]))
        pause *= 1.5
    return left


def _created(lock: Lock) -> bool:
    """Take a lock that nobody holds; false where another process does, or did a moment ago."""
    from mlflow.exceptions import MlflowException

    lock.since = time.monotonic()
    try:
        lock.store.client.create_registered_model(
            lock.name, tags={_HOLDER: lock.holder}, description=_WHAT
        )
    except MlflowException as error:
        # Refused, MLflow looks at the model that is in the way: by then it may be gone again.
        if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"):
            raise
        return False
    return True


def _renamed(lock: Lock, aside: str) -> bool:
    """Move a dead holder's lock aside; false where another process did so first."""
    from mlflow.exceptions import MlflowException

    try:
        lock.store.client.rename_registered_model(lock.name, aside)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"):
            raise
        return False
    return True


def _holder(store: Store, name: str) -> str:
    """Return who holds the lock, "" for nobody."""
    found = store.client.search_registered_models(f"name = '{name}'")
    return str(found[0].tags.get(_HOLDER, "")) if found else ""
