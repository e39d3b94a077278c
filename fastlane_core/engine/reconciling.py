"""Finding and mending what crashes, lost messages and lost data have left behind.

Every pass is bounded: it looks at one page of what has not ended, at what is owed, and at the runs that engines
still hold, however much history there is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

import structlog

from fastlane_core.contracts.queue import Lease
from fastlane_core.contracts.runner import OwnedRun, Runner
from fastlane_core.engine.context import WorkerContext
from fastlane_core.engine.leases import LeaseKeeper
from fastlane_core.engine.records import change_execution
from fastlane_core.engine.submission import queue_item
from fastlane_core.engine.supervision import add_next_attempt
from fastlane_core.errors import EngineUnavailable, InvalidInput, QueueUnavailable, RunNotFound, StorageUnavailable
from fastlane_core.models import Event, EventKind, Execution, Status

log = structlog.get_logger(__name__)

#: Records looked at in one pass, and in one call.
_PASS = 5_000
_PAGE = 500
#: Seconds that a record has not changed before a missing queue item is put down to a crash.
_SETTLED = 3.0
#: Leftovers of one place that are ended at a time: each may take its grace.
_CLEANED_AT_A_TIME = 16
#: Seconds after which a run without a record is taken for a leftover.
_ORPHAN_AGE = 60.0


class Reconciler:
    """Compares storage, queue and engines, and mends what does not fit; every mending is logged and counted."""

    def __init__(self, context: WorkerContext, keeper: LeaseKeeper) -> None:
        self._context = context
        self._keeper = keeper
        self._cursor: str | None = None
        self._returned: asyncio.Queue[tuple[str, str]] = asyncio.Queue()

    async def run(self) -> None:
        """Reconcile at intervals until cancelled, and sweep places as soon as they come back."""
        interval = self._context.options.reconcile_interval_seconds
        while True:
            pause = interval
            try:
                await self.reconcile()
            except (StorageUnavailable, QueueUnavailable) as error:
                log.warning("could not reconcile; trying again later", error=str(error))
                pause = min(1.0, interval)
            try:
                async with asyncio.timeout(pause):
                    await self._sweep_what_returns()
            except TimeoutError:
                # Time for the next pass.
                continue
            except (StorageUnavailable, QueueUnavailable) as error:
                log.warning("could not sweep a place that came back", error=str(error))

    def place_returned(self, lane: str, place: str) -> None:
        """A place can be used again: runs that were given up as lost may be alive there, and it is swept at once."""
        self._returned.put_nowait((lane, place))

    async def reconcile(self) -> None:
        """One pass. Raises StorageUnavailable, QueueUnavailable."""
        await self._rebuild_queue()
        await self._put_missing()
        await self._pay_what_is_owed()
        await self._empty_closed_lanes()
        for runner in self._context.routing.runners:
            for place in await self._places(runner):
                await self._try_to_sweep(runner, place)

    async def _sweep_what_returns(self) -> None:
        while True:
            lane, place = await self._returned.get()
            await self._try_to_sweep(self._context.routing.runner_of(lane), place)

    async def _try_to_sweep(self, runner: Runner, place: str) -> None:
        try:
            await self._sweep(runner, place)
        except EngineUnavailable as error:
            log.info("could not look for leftovers", place=place, error=str(error))

    async def _rebuild_queue(self) -> None:
        """Put everything back into a queue that has lost its data: leases of what may run first, then what waits."""
        queue = self._context.queue
        if not await queue.needs_rebuild():
            return
        counts = {"leases": 0, "waiting": 0}
        await queue.restore_leases(self._keeper.leases(), self._context.options.lease_seconds)
        for wanted in ("leases", "waiting"):
            cursor: str | None = None
            while True:
                page = await self._context.storage.list_unfinished(cursor=cursor, limit=_PAGE)
                begun = [each for each in page.items if each.place is not None]
                fresh = [each for each in page.items if each.place is None]
                if wanted == "leases":
                    await queue.restore_leases([_lease(each) for each in begun], self._context.options.lease_seconds)
                    counts[wanted] += len(begun)
                else:
                    await queue.put([queue_item(each) for each in fresh])
                    counts[wanted] += len(fresh)
                cursor = page.cursor
                if cursor is None:
                    break
        await queue.rebuilt()
        if any(counts.values()):
            self._mended(
                None, f"the queue was empty; put back {counts['leases']} leases and {counts['waiting']} that wait"
            )

    async def _put_missing(self) -> None:
        """Put executions into the queue that it should hold but does not."""
        seen = 0
        while seen < _PASS:
            page = await self._context.storage.list_unfinished(cursor=self._cursor, limit=_PAGE)
            seen += len(page.items)
            self._cursor = page.cursor
            before = self._context.clock() - _SETTLED
            settled = [each for each in page.items if each.updated_at < before and each.id not in self._keeper]
            if settled:
                present = await self._context.queue.contains([each.id for each in settled])
                for execution in settled:
                    if execution.id not in present:
                        await self._put_back(execution.id)
            if self._cursor is None:
                return

    async def _put_back(self, execution_id: str) -> None:
        execution = await self._context.storage.get_execution(execution_id)
        if execution is None or execution.status.is_final:
            return
        if execution.place is None:
            await self._context.queue.put([queue_item(execution)])
        else:
            await self._context.queue.restore_leases([_lease(execution)], self._context.options.lease_seconds)
        self._mended(execution, "it was missing from the queue; put back")

    async def _pay_what_is_owed(self) -> None:
        """Make the next attempts of executions whose worker died before it could."""
        until = self._context.clock() - _SETTLED
        for execution in await self._context.storage.list_owing(until=until, limit=_PAGE):
            if execution.id not in self._keeper:
                await add_next_attempt(self._context, execution)
                self._mended(execution, "its next attempt was owed; made")

    async def _empty_closed_lanes(self) -> None:
        """Route anew what waits in lanes that no runner offers any more, and adopt what runs there."""
        queue, routing = self._context.queue, self._context.routing
        for lane, stats in (await queue.stats()).items():
            if routing.lane(lane) is not None:
                continue
            for item in await queue.peek(lane, _PAGE):
                try:
                    target = routing.lane_for(item.task_id).name
                except InvalidInput as error:
                    await self._step(item.execution_id, _waits_for(f"a lane: {error}"))
                    continue
                execution = await self._step(item.execution_id, _moves_to(target))
                if execution is not None and not execution.status.is_final and execution.lane == target:
                    await queue.cancel(execution.id)
                    await queue.put([queue_item(execution)])
                    self._mended(execution, f"no runner offers its lane {lane} any more; moved to {target}")
            if stats.leased and self._keeper.free:
                leases = await queue.claim(
                    lane,
                    worker=self._context.worker,
                    capacity=0,
                    limit=self._keeper.free,
                    lease_seconds=self._context.options.lease_seconds,
                )
                self._keeper.keep(leases)

    async def _step(self, execution_id: str, step: Callable[[Execution], Execution]) -> Execution | None:
        execution = await self._context.storage.get_execution(execution_id)
        if execution is None:
            return None
        return await change_execution(self._context.storage, execution, step, fence=None)

    async def _places(self, runner: Runner) -> Sequence[str]:
        found: dict[str, None] = {}
        for lane in runner.lanes():
            places = (await runner.availability(lane.name)).places
            found.update(dict.fromkeys(self._context.trouble.usable(lane.name, places, now=self._context.clock())))
        return list(found)

    async def _sweep(self, runner: Runner, place: str) -> None:
        """Clean up runs on `place` that no unfinished execution has there."""
        cleaning = asyncio.Semaphore(_CLEANED_AT_A_TIME)

        async def clean_up(run: OwnedRun, execution: Execution | None, why: str) -> None:
            async with cleaning:
                try:
                    if run.running:
                        await runner.stop(run.handle, self._context.options.stop_grace_seconds)
                    await runner.finish(run.handle)
                except RunNotFound:
                    return
            self._mended(execution, f"a run of execution {run.execution_id} was left on {place}: {why}; cleaned up")

        try:
            async with asyncio.TaskGroup() as tasks:
                async for run in runner.list_owned(place):
                    if run.execution_id in self._keeper:
                        continue
                    execution = await self._context.storage.get_execution(run.execution_id)
                    if why := self._leftover(run, execution, place):
                        tasks.create_task(clean_up(run, execution, why))
        except ExceptionGroup as errors:
            # The first tells as much as all of them.
            raise errors.exceptions[0] from None

    def _leftover(self, run: OwnedRun, execution: Execution | None, place: str) -> str:
        """Why nobody needs the run any more; "" if somebody does, or may."""
        now = self._context.clock()
        if execution is None:
            return "no record of it" if now - run.created_at > _ORPHAN_AGE else ""
        if execution.status.is_final:
            return "it has ended" if now - execution.updated_at > _SETTLED else ""
        if execution.place is not None and execution.place != place and run.fence < execution.fence:
            return f"it runs on {execution.place} now"
        return ""

    def _mended(self, execution: Execution | None, message: str) -> None:
        log.warning("mended", execution=execution.id if execution else None, what=message)
        self._context.emit(
            Event(
                kind=EventKind.EXECUTION_MENDED,
                at=self._context.clock(),
                task_id=execution.task_id if execution else None,
                job_id=execution.job_id if execution else None,
                execution_id=execution.id if execution else None,
                worker=self._context.worker,
                message=message,
            )
        )


def _lease(execution: Execution) -> Lease:
    """The lease that the queue must have held for an execution that has begun."""
    return Lease(
        item=queue_item(execution),
        worker=execution.worker or "",
        token=execution.lease_token or "",
        adopted=False,
        place=execution.place,
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
