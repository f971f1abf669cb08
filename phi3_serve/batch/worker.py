"""Runs the batches of a directory. Of all processes that share it one does so, and another one when that has ended."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from phi3_serve.batch.batch_run import BatchRun
from phi3_serve.batch.batch_store import BatchRequest
from phi3_serve.batch.directory import BatchDirectory
from phi3_serve.batch.lines import Reply, RequestLine
from phi3_serve.batch.validation import InputLimits

logger = logging.getLogger("ray.serve")

POLL_INTERVAL_S = 0.5
RETRY_INTERVAL_S = 30.0  # after a file could not be read or written
SWEEP_INTERVAL_S = 3600.0
MOST_BATCHES = 8  # that run at the same time; the others wait

Owner = str | None
SendFor = Callable[[Owner, RequestLine], Awaitable[Reply]]


@dataclass(frozen=True, slots=True)
class _Batch:
    owner: Owner
    id: str


class BatchWorker:
    """Runs every batch of ``directory`` to its end."""

    def __init__(
        self,
        directory: BatchDirectory,
        send: SendFor,
        *,
        limits: InputLimits,
        keep_s: int,
        may_run: Callable[[Owner], bool],
    ) -> None:
        """Prepare to run.

        Args:
            directory: where the batches are.
            send: sends a request for its owner.
            limits: of input files.
            keep_s: seconds for which batches and the files of their answers are kept.
            may_run: whether the batches of an owner go on. The others wait for the end of their completion window.
        """
        self._directory = directory
        self._send = send
        self._limits = limits
        self._keep_s = keep_s
        self._may_run = may_run
        self._running: dict[_Batch, asyncio.Task[None]] = {}
        self._ended: set[_Batch] = set()
        self._retry_at: dict[_Batch, float] = {}  # of batches that could not go on, on the monotonic clock

    @property
    def num_running(self) -> int:
        """The batches that this process runs now."""
        return len(self._running)

    async def run(self) -> None:
        """Run batches, or wait until the process that does so ends; until the task is cancelled."""
        while True:
            try:
                with self._directory.locked() as is_mine:
                    if is_mine:
                        await self._lead()
            except Exception:  # the directory may be away for a while
                logger.exception("batches cannot go on; they are tried again in %g s", RETRY_INTERVAL_S)
                await asyncio.sleep(RETRY_INTERVAL_S)
            await asyncio.sleep(POLL_INTERVAL_S)

    async def _lead(self) -> None:
        """Start the batches that wait, as this process alone."""
        sweep_at = 0.0
        try:
            while True:
                if time.monotonic() >= sweep_at:
                    await asyncio.to_thread(self._sweep)
                    sweep_at = time.monotonic() + SWEEP_INTERVAL_S
                waiting = await asyncio.to_thread(lambda: list(self._waiting()))
                self._start_some(waiting)
                await asyncio.sleep(POLL_INTERVAL_S)
        finally:
            tasks = list(self._running.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _waiting(self) -> Iterator[_Batch]:
        for owner in self._directory.owners():
            batches = self._directory.of(owner).batches
            for batch in (_Batch(owner, id) for id in batches.ids()):
                if batch in self._ended or batch in self._running:
                    continue
                if time.monotonic() < self._retry_at.get(batch, 0.0):  # it leaves its place to another one
                    continue
                if batches.progress(batch.id).has_ended:
                    self._ended.add(batch)
                elif self._may_run(owner) or _is_late(batches.request(batch.id)):
                    yield batch

    def _start_some(self, waiting: list[_Batch]) -> None:
        """Start what there is room for: the oldest batch of the owner that has the fewest running, again and again."""
        num_running = Counter(batch.owner for batch in self._running)
        while waiting and len(self._running) < MOST_BATCHES:
            chosen = min(waiting, key=lambda batch: (num_running[batch.owner], batch.id))
            waiting.remove(chosen)
            num_running[chosen.owner] += 1
            task = asyncio.create_task(self._run_one(chosen))
            self._running[chosen] = task
            task.add_done_callback(lambda _, batch=chosen: self._running.pop(batch))  # type: ignore[misc]

    async def _run_one(self, batch: _Batch) -> None:
        stores = self._directory.of(batch.owner)
        request = await asyncio.to_thread(stores.batches.request, batch.id)
        if request is None:
            logger.error("batch %s cannot be read; it is left as it is", batch.id)
            self._ended.add(batch)
            return
        run = BatchRun(request, stores, lambda line: self._send(batch.owner, line), self._limits, self._keep_s)
        try:
            await run.run()
        except Exception:  # one batch must not end the others
            logger.exception("batch %s cannot go on; it is tried again in %g s", batch.id, RETRY_INTERVAL_S)
            self._retry_at[batch] = time.monotonic() + RETRY_INTERVAL_S
        else:
            self._retry_at.pop(batch, None)

    def _sweep(self) -> None:
        """Remove what was kept for long enough."""
        for owner in self._directory.owners():
            stores = self._directory.of(owner)
            stores.files.sweep(lambda id, batches=stores.batches: batches.uses(id) is not None)  # type: ignore[misc]
            for id in stores.batches.ids():
                if self._is_old(stores.batches.request(id)) and stores.batches.progress(id).has_ended:
                    stores.batches.delete(id)

    def _is_old(self, request: BatchRequest | None) -> bool:
        return request is not None and time.time() > request.expires_at + self._keep_s


def _is_late(request: BatchRequest | None) -> bool:
    return request is not None and time.time() >= request.expires_at
