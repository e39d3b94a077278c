"""The leases of one worker, kept alive while their executions are looked after."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

import structlog

from fastlane_core.contracts.queue import Lease
from fastlane_core.engine.context import WorkerContext
from fastlane_core.engine.supervision import Supervision
from fastlane_core.engine.topics import worker_topic
from fastlane_core.errors import QueueUnavailable, StorageUnavailable

log = structlog.get_logger(__name__)

#: Leases are renewed this many times within the span of one.
_RENEWALS_PER_LEASE = 3


class LeaseKeeper:
    """Runs a supervision for each lease and renews the lease until the supervision is over."""

    def __init__(self, context: WorkerContext) -> None:
        self._context = context
        self._held: dict[str, tuple[Supervision, asyncio.Task[None]]] = {}
        #: How many are held of each lane.
        self._held_of: Counter[str] = Counter()
        self._freed = asyncio.Event()
        #: Executions of which the queue said last that they are to stop.
        self._stops: frozenset[str] = frozenset()
        self._stops_told = asyncio.Event()

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, execution_id: object) -> bool:
        return execution_id in self._held

    def free(self, lane: str) -> int:
        """How many more executions of the lane this worker may take; a full lane leaves the others theirs."""
        return max(0, self._context.options.concurrency - self._held_of[lane])

    async def wait_for_free(self, lane: str) -> None:
        """Return when this worker may take an execution of the lane."""
        while not self.free(lane):
            self._freed.clear()
            await self._freed.wait()

    def keep(self, leases: Sequence[Lease]) -> None:
        """Begin to look after newly claimed executions."""
        for lease in leases:
            execution_id = lease.item.execution_id
            if execution_id in self._held:
                # Claimed again by the worker that was too late to renew: the supervision under way is cancelled, and
                # the new one begins from what the record says.
                replaced, task = self._held[execution_id]
                task.cancel()
                self._held_of[replaced.lease.item.lane] -= 1
            self._held_of[lease.item.lane] += 1
            supervision = Supervision(self._context, lease)
            task = asyncio.create_task(supervision.run(), name=f"supervise {execution_id}")
            self._held[execution_id] = (supervision, task)
            task.add_done_callback(lambda done, key=execution_id: self._forget(key, done))  # type: ignore[misc]

    async def run(self) -> None:
        """Renew until cancelled; at once when somebody wants one of the executions to stop."""
        pause = self._context.options.lease_seconds / _RENEWALS_PER_LEASE
        async with self._context.queue.subscribe([worker_topic(self._context.worker)]) as wake_ups:
            while True:
                await wake_ups.next(pause)
                # With trouble at the queue the runs go on; nobody adopts while it is out of reach, and what it
                # has lost when it is back the reconcilers put there again.
                with suppress(QueueUnavailable):
                    await self.renew()

    async def heed_stops(self) -> None:
        """Tell supervisions that their execution is to stop, until cancelled.

        Apart from renewing, which must not wait for a storage that hangs: it would cost every lease.
        """
        while True:
            await self._stops_told.wait()
            self._stops_told.clear()
            # With trouble at the storage they are told again at the next renewal.
            with suppress(StorageUnavailable):
                for execution_id in self._stops:
                    await self._heed_stop(execution_id)

    async def renew(self) -> None:
        """Renew every lease, drop the lost ones, and note which were asked to stop. Raises QueueUnavailable."""
        held = {execution_id: supervision.lease for execution_id, (supervision, _) in self._held.items()}
        if not held:
            return
        renewal = await self._context.queue.renew(list(held.values()), self._context.options.lease_seconds)
        for execution_id in renewal.lost:
            found = self._held.get(execution_id)
            if found is not None and found[0].lease is held[execution_id]:
                log.warning("lost a lease; another worker has the execution", execution=execution_id)
                found[1].cancel()
        self._stops = renewal.stop
        if renewal.stop:
            self._stops_told.set()

    async def hand_over(self) -> None:
        """Stop looking after everything, leave the runs alone, and let others adopt them at once."""
        held = [(supervision.lease, task) for supervision, task in self._held.values()]
        for _, task in held:
            task.cancel()
        await asyncio.gather(*(task for _, task in held), return_exceptions=True)
        await self._context.queue.hand_over([lease for lease, _ in held])

    async def drain(self, names: frozenset[str], deadline: float) -> None:
        """Wait up to `deadline` seconds for the executions of these lanes, whose runs would die with the worker."""
        tasks = [task for supervision, task in self._held.values() if supervision.lease.item.lane in names]
        if tasks:
            await asyncio.wait(tasks, timeout=deadline)

    def leases(self) -> Sequence[Lease]:
        """What is held now."""
        return [supervision.lease for supervision, _ in self._held.values()]

    async def _heed_stop(self, execution_id: str) -> None:
        found = self._held.get(execution_id)
        if found is None or found[0].stop_wanted.is_set():
            return
        # Storage is the truth: the queue's word alone stops nothing.
        stored = await self._context.storage.get_execution(execution_id)
        if stored is not None and stored.stop_requested_at is not None and execution_id in self._held:
            self._held[execution_id][0].stop_wanted.set()

    def _forget(self, execution_id: str, task: asyncio.Task[None]) -> None:
        found = self._held.get(execution_id)
        if found is not None and found[1] is task:
            del self._held[execution_id]
            self._held_of[found[0].lease.item.lane] -= 1
        self._freed.set()
