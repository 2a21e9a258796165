"""Concurrent requests are answered together.

One thread computes. While it does, requests gather; when it is free it takes all that wait, up to
a number of queries, and embeds and searches them together. Nothing waits for a batch to fill, so a
request that comes alone is not held up.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from exemplar.serving.query import Query, Selection
from exemplar.serving.server.live import Loaded


class OverloadError(Exception):
    """More queries wait than the server would answer in reasonable time."""


@dataclass(eq=False)
class _Job:
    model: Loaded
    queries: Sequence[Query]
    done: asyncio.Future[list[Selection]] = field(default_factory=asyncio.Future)


class Batcher:
    """Answers queries on one thread, those that wait together in one batch.

    `batch_size`: queries of a batch, 1 for each request by itself (a request is never split).
    `most_waiting`: queries that may wait; beyond it `OverloadError` is raised. `threads`: processor
    threads that a batch computes on, None for what the libraries choose.
    """

    def __init__(self, *, batch_size: int, most_waiting: int, threads: int | None):
        self._batch_size = batch_size
        self._most_waiting = most_waiting
        self._jobs: deque[_Job] = deque()
        self._waiting = 0  # queries
        self._worker = ThreadPoolExecutor(
            1, "exemplar-batch", initializer=_use_threads, initargs=(threads,)
        )
        self._running: asyncio.Task[None] | None = None

    async def answer(self, model: Loaded, queries: Sequence[Query]) -> list[Selection]:
        """Return a selection for each query. They must have been checked with this model."""
        if self._jobs and self._waiting + len(queries) > self._most_waiting:
            raise OverloadError
        job = _Job(model, queries)
        self._jobs.append(job)
        self._waiting += len(queries)
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        return await job.done

    async def close(self) -> None:
        """Finish what waits, then stop the thread."""
        if self._running is not None:
            await self._running
        self._worker.shutdown()

    async def _run(self) -> None:
        while self._jobs:
            batch = self._take()
            if not await self._compute(batch) and len(batch) > 1:
                for job in batch:  # one of them fails: the others must not
                    await self._compute([job])

    def _take(self) -> list[_Job]:
        """Take jobs of one model, in the order in which they came, up to the batch's size."""
        batch = [self._jobs.popleft()]
        size = len(batch[0].queries)
        while self._jobs:
            job = self._jobs[0]
            size += len(job.queries)
            if size > self._batch_size or job.model is not batch[0].model:
                break
            batch.append(self._jobs.popleft())
        self._waiting -= sum(len(job.queries) for job in batch)
        return batch

    async def _compute(self, batch: Sequence[_Job]) -> bool:
        """Answer jobs together; return False where that failed. A single job is told the error."""
        queries = [query for job in batch for query in job.queries]
        loop = asyncio.get_running_loop()
        computing = loop.run_in_executor(self._worker, batch[0].model.retriever.answer, queries)
        (found,) = await asyncio.gather(computing, return_exceptions=True)
        if isinstance(found, BaseException):
            if len(batch) == 1 and not batch[0].done.done():
                batch[0].done.set_exception(found)
            return False
        start = 0
        for job in batch:
            stop = start + len(job.queries)
            if not job.done.done():  # the client may have gone
                job.done.set_result(found[start:stop])
            start = stop
        return True


def _use_threads(count: int | None) -> None:
    if count is None:
        return
    # Both libraries count threads for the thread that asks, and so it is asked on the worker.
    import faiss
    import torch

    torch.set_num_threads(count)
    faiss.omp_set_num_threads(count)
