"""Mending what crashes, lost messages and lost data have left behind.

Every pass is bounded: it looks at a stretch of what has not ended, at the heads of the lanes and at what is owed,
however much history there is. It asks no engine, so that a queue that lost its data is rebuilt at once (`sweeping.py`
cleans up runs).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence

import structlog

from fastlane_core.engine.attempts import add_next_attempt
from fastlane_core.engine.context import WorkerContext
from fastlane_core.engine.leases import LeaseKeeper
from fastlane_core.engine.lifecycle import before_start, ended, waited_too_long
from fastlane_core.engine.mending import note_mending
from fastlane_core.engine.misfits import Inspection, Misfit
from fastlane_core.engine.rebuilding import lease_of, rebuild_queue
from fastlane_core.engine.records import change_execution
from fastlane_core.engine.submission import queue_item
from fastlane_core.engine.task_limits import TaskLimits
from fastlane_core.engine.topics import execution_topic, worker_topic
from fastlane_core.errors import QueueUnavailable, StorageUnavailable
from fastlane_core.models import Event, EventKind, Execution, Mending, Status
from fastlane_core.quick_dataclass import replace

log = structlog.get_logger(__name__)

#: Unfinished records looked at in one pass.
_PASS = 5_000
#: Executions that one pass removes because they are old, and that one call does.
_REMOVED = 1_000
_REMOVED_AT_ONCE = 100
#: Executions of which it is remembered that the request to stop them was repeated.
_MOST_REPEATED = 10_000


class Reconciler:
    """Compares storage and queue, and mends what does not fit; every mending is logged and counted."""

    def __init__(self, context: WorkerContext, keeper: LeaseKeeper) -> None:
        self._context = context
        self._keeper = keeper
        self._inspection = Inspection(context.storage, context.queue, context.routing, context.clock, in_hand=keeper)
        self._cursor: str | None = None
        self._task_limits = TaskLimits(context.storage, context.queue, context.clock)
        #: Whether everything that waits has the limits that this worker's settings say.
        self._limits_told = False
        self._repeated: OrderedDict[str, None] = OrderedDict()

    async def run(self) -> None:
        """Reconcile at intervals until cancelled."""
        interval = self._context.options.reconcile_interval_seconds
        while True:
            pause = interval
            try:
                await self.reconcile()
            except (StorageUnavailable, QueueUnavailable) as error:
                log.warning("could not reconcile; trying again later", error=str(error))
                pause = min(1.0, interval)
            await asyncio.sleep(pause)

    async def reconcile(self) -> None:
        """One pass. Raises StorageUnavailable, QueueUnavailable.

        Each step is taken although the queue refused one before: a part of it may be out of reach.
        """
        if await self._context.queue.needs_rebuild():
            await rebuild_queue(self._context, self._keeper.leases())
        trouble: QueueUnavailable | None = None
        for step in (
            self._task_limits.compare,
            self._mend_unfinished,
            self._empty_heads,
            self._make_next_attempts,
            self._route_closed_lanes_anew,
            self._adopt_in_closed_lanes,
            self._remove_old,
        ):
            try:
                await step()
            except QueueUnavailable as error:
                trouble = error
        if trouble is not None:
            raise trouble

    # Executions that have not ended

    async def _mend_unfinished(self) -> None:
        seen = 0
        while seen < _PASS:
            misfits, page = await self._inspection.unfinished(self._cursor)
            for misfit in misfits:
                await self._mend(misfit)
            if not self._limits_told:
                await self._tell_limits(page.items)
            seen += len(page.items)
            self._cursor = page.cursor
            if self._cursor is None:
                self._limits_told = True
                return

    async def _tell_limits(self, executions: Sequence[Execution]) -> None:
        """Settings may have changed since the executions were put in the queue."""
        waiting = [each for each in executions if each.place is None and each.id not in self._keeper]
        present = await self._context.queue.contains([each.id for each in waiting])
        await self._context.queue.put(
            [queue_item(each, self._context.routing) for each in waiting if each.id in present]
        )

    async def _mend(self, misfit: Misfit) -> None:
        # Much may have happened since the page was read.
        execution = await self._context.storage.get_execution(misfit.execution_id)
        if execution is None or execution.status.is_final:
            return
        match misfit.kind:
            case Mending.EXPIRED_WAITING:
                await self._expire(misfit, execution)
            case Mending.MISSING_IN_QUEUE:
                await self._put_back(misfit, execution)
            case Mending.STOP_UNHEARD:
                await self._repeat_stop(misfit, execution)

    async def _put_back(self, misfit: Misfit, execution: Execution) -> None:
        if execution.place is None:
            await self._context.queue.put([queue_item(execution, self._context.routing)])
        else:
            await self._context.queue.restore_leases(
                [lease_of(execution, self._context.routing)], self._context.options.lease_seconds
            )
        self._note(misfit, "put back", execution)

    async def _expire(self, misfit: Misfit, execution: Execution) -> None:
        """End what waits in a lane that is full or dead: no worker comes to it."""
        now = self._context.clock()

        def step(current: Execution) -> Execution:
            if current.status is not Status.ENQUEUED or current.place is not None:
                return current
            ending = before_start(current, now=now) or waited_too_long(current, now=now)
            return current if ending is None else ended(current, ending, now=now)

        execution = await change_execution(self._context.storage, execution, step, fenced=False)
        if execution.status.is_final:
            await self._context.queue.cancel(execution.id)
            await self._context.queue.publish(execution_topic(execution.id))
            self._context.emit(
                Event(
                    kind=EventKind.EXECUTION_CHANGED,
                    at=now,
                    task_id=execution.task_id,
                    job_id=execution.job_id,
                    execution_id=execution.id,
                    lane=execution.lane,
                    worker=self._context.worker,
                    status=execution.status,
                    reason=execution.reason,
                    message=execution.message or "",
                )
            )
            self._note(misfit, "ended", execution)

    async def _repeat_stop(self, misfit: Misfit, execution: Execution) -> None:
        """Tell the holder of its lease again; noted once, for it may be its engine that takes so long."""
        await self._context.queue.cancel(execution.id)
        if execution.worker is not None:
            await self._context.queue.publish(worker_topic(execution.worker))
        if execution.id in self._repeated:
            return
        self._repeated[execution.id] = None
        if len(self._repeated) > _MOST_REPEATED:
            self._repeated.popitem(last=False)
        self._note(misfit, "asked again", execution)

    # What the queue should not hold, and what is owed

    async def _empty_heads(self) -> None:
        for misfit in await self._inspection.heads():
            await self._remove_from_queue(misfit)

    async def _make_next_attempts(self) -> None:
        for misfit in await self._inspection.owing():
            await self._make_next_attempt(misfit)

    async def _route_closed_lanes_anew(self) -> None:
        async for misfit in self._inspection.closed_lanes():
            await self._route_anew(misfit)

    async def _remove_from_queue(self, misfit: Misfit) -> None:
        # Claimed meanwhile, it is dropped by whoever has it.
        await self._context.queue.cancel(misfit.execution_id)
        self._note(misfit, "removed", misfit.execution)

    async def _make_next_attempt(self, misfit: Misfit) -> None:
        if misfit.execution is not None:
            await add_next_attempt(self._context, misfit.execution)
            self._note(misfit, "made", misfit.execution)

    async def _route_anew(self, misfit: Misfit) -> None:
        execution = await self._context.storage.get_execution(misfit.execution_id)
        if execution is None:
            return
        target = misfit.target
        if not isinstance(target, str):
            await change_execution(self._context.storage, execution, _waits_for(f"a lane: {target}"), fenced=False)
            return
        execution = await change_execution(self._context.storage, execution, _moves_to(target), fenced=False)
        if not execution.status.is_final and execution.lane == target:
            await self._context.queue.cancel(execution.id)
            await self._context.queue.put([queue_item(execution, self._context.routing)])
            self._note(misfit, f"moved to {target}", execution)

    async def _adopt_in_closed_lanes(self) -> None:
        for lane, stats in (await self._context.queue.stats()).items():
            if self._context.routing.lane(lane) is None and stats.leased and self._keeper.free(lane):
                leases = await self._context.queue.claim(
                    lane,
                    worker=self._context.worker,
                    capacity=0,
                    limit=self._keeper.free(lane),
                    lease_seconds=self._context.options.lease_seconds,
                )
                self._keeper.keep(leases)

    # Retention

    async def _remove_old(self) -> None:
        """Remove executions that ended long ago, some in each pass."""
        keep = self._context.options.keep_finished_seconds
        if keep is None:
            return
        before, removed = self._context.clock() - keep, 0
        while removed < _REMOVED:
            count = await self._context.storage.remove_finished(before=before, limit=_REMOVED_AT_ONCE)
            removed += count
            if count < _REMOVED_AT_ONCE:
                break
        if removed:
            log.info("removed executions that ended long ago", count=removed, days=keep / 86_400)

    def _note(self, misfit: Misfit, done: str, execution: Execution | None) -> None:
        note_mending(
            self._context,
            misfit.kind,
            f"{misfit.message}; {done}",
            execution_id=misfit.execution_id,
            execution=execution,
        )


def _waits_for(why: str) -> Callable[[Execution], Execution]:
    def step(execution: Execution) -> Execution:
        if execution.status is not Status.ENQUEUED or execution.waiting_for == why:
            return execution
        return replace(execution, waiting_for=why)

    return step


def _moves_to(lane: str) -> Callable[[Execution], Execution]:
    def step(execution: Execution) -> Execution:
        if execution.status is not Status.ENQUEUED or execution.place is not None or execution.lane == lane:
            return execution
        return replace(execution, lane=lane)

    return step
