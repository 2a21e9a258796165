"""The model that answers now, and how another takes its place without a request lost.

A version is loaded and tried beside the one that answers, then one assignment puts it in its place.
Requests hold the model that they were checked against, so each is answered by one version, and the
old one is freed after its last request. Whatever a load fails with, the old version goes on.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from exemplar.serving.server.logs import event

if TYPE_CHECKING:
    from exemplar.serving import Retriever
    from exemplar.tracking.store import Store

log = logging.getLogger(__name__)

_LONGEST_PAUSE = 600.0  # seconds until a version that failed to load is tried again


@dataclass(frozen=True)
class Source:
    """Where versions come from: `find` tells the wanted one, `load` loads one.

    `alias` is the one that is followed, None where the version is fixed.
    """

    name: str
    alias: str | None
    find: Callable[[], str | None]
    load: Callable[[str | None], Retriever]


@dataclass(frozen=True)
class Loaded:
    """A model that is ready to answer. `version` is None for a folder."""

    retriever: Retriever
    version: str | None
    since: str


class LiveModel:
    """The model that answers, None until the first one is loaded."""

    def __init__(self, source: Source):
        self.source = source
        self.current: Loaded | None = None
        self.update_error: str | None = None
        self._failed: tuple[str | None, float, float] | None = None  # version, pause, retry at
        self._replaced = False

    def refresh(self) -> None:
        """Look which version is wanted and, if it is another one, load it and let it answer."""
        if self._replaced:  # transformers' models hold themselves, and so their memory, in cycles
            gc.collect()
            self._replaced = False
        wanted = self.source.find()
        current = self.current
        if current is not None and current.version == wanted:
            self._failed = None
            return
        pause = 0.0
        if self._failed and self._failed[0] == wanted:
            _, pause, retry_at = self._failed
            if time.monotonic() < retry_at:
                raise _TooEarlyError
        start = time.monotonic()
        pause = min(max(2 * pause, 10.0), _LONGEST_PAUSE)
        self._failed = (wanted, pause, start + pause)
        retriever = self.source.load(wanted)
        retriever.select("The first query of a process takes longer.", k=1)
        self._failed, self._replaced = None, current is not None
        self.current = Loaded(retriever, wanted, datetime.now(UTC).isoformat(timespec="seconds"))
        event(
            log,
            "model loaded",
            model=self.source.name,
            version=wanted,
            before=current and current.version,
            seconds=round(time.monotonic() - start, 2),
        )

    def note(self, error: BaseException | None) -> None:
        """Keep why the last refresh failed, and log it unless it is known already."""
        if isinstance(error, _TooEarlyError):
            return
        text = None if error is None else f"{type(error).__name__}: {error}"
        if text is not None and text != self.update_error:
            version = self.current and self.current.version
            event(log, "update failed", level=logging.ERROR, answering=version, error=text)
        self.update_error = text


class _TooEarlyError(Exception):
    """A version that failed to load is not tried again yet."""


async def watch(live: LiveModel, poll_seconds: float) -> None:
    """Load the first model, then follow the alias until cancelled; raises if the first fails."""
    await asyncio.to_thread(live.refresh)
    while live.source.alias is not None:
        await asyncio.sleep(poll_seconds)
        # Any error at all: a damaged file or a lost network may raise whatever they like.
        (error,) = await asyncio.gather(asyncio.to_thread(live.refresh), return_exceptions=True)
        live.note(error)


def source_of(reference: str, store: Store | None) -> Source:
    """Return the source of a models:/ reference in a store or, without one, of a folder."""
    from exemplar.serving import Retriever

    if store is None:
        name = Path(reference).resolve().name
        return Source(name, None, lambda: None, lambda _: Retriever.load(reference))
    from exemplar.registry import aliases

    registry = store
    name, alias, _ = aliases.parse(reference)
    return Source(
        name,
        alias,
        lambda: aliases.resolve(registry, reference)[1],
        lambda version: Retriever.load(f"models:/{name}/{version}", store=registry),
    )
