"""Firing schedules: due jobs get the executions of their ticks, once per tick with any number of workers and any kill.

The execution of a tick has an id that follows from job and tick, and adding one that is there does nothing. It is
stored and put in the queue first; then the job's next tick is written, by compare-and-set. A crash between the two, or
another worker at the same job, only repeats what has been done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from fastlane_core.engine.attempts import add_next_attempt
from fastlane_core.engine.context import WorkerContext
from fastlane_core.engine.faultpoints import FaultPoint
from fastlane_core.engine.presence import WORKERS_SCOPE, live_reports
from fastlane_core.engine.schedules import (
    MISSED_AFTER,
    MOST_QUEUED,
    STOP_SECONDS,
    Firing,
    advanced,
    due_ticks,
    execution_of,
    is_stopping,
    refused,
    with_overlap,
)
from fastlane_core.engine.stopping import Stopping
from fastlane_core.engine.submission import queue_item
from fastlane_core.errors import FastlaneError, InvalidInput, QueueUnavailable, StorageUnavailable
from fastlane_core.models import Event, EventKind, Execution, Job, JsonObject, Overlap
from fastlane_core.quick_dataclass import replace

log = structlog.get_logger(__name__)

#: Jobs that one look takes up.
_AT_ONCE = 1_000
#: Executions that one look makes, unless a single job makes more, and those that one call adds.
_MOST_FIRED = 5_000
_ADDED_AT_ONCE = 1_000
#: Jobs whose earlier executions are looked at, at a time, and how many of each may owe a retry.
_LOOKED_AT = 16
_NEWEST = 5
#: Jobs whose next tick is found before others get their turn at the loop.
_SLICE = 50
#: Seconds after which a job whose schedule could not be fired because of a defect is tried again.
_DEFECT_DELAY = 60.0
#: Seconds that each worker leaves due jobs to the one before it, and the most that any does.
_STAGGER, _MOST_STAGGERED = 0.5, 4
#: Seconds between two looks at which other workers there are.
_RANK_SECONDS = 5.0
#: Seconds; clocks may be a little behind the timer that woke the loop.
_SHORTEST_PAUSE = 0.002


class Scheduler:
    """Fires what is due. Workers leave it to the first of them as long as that one does it."""

    def __init__(self, context: WorkerContext) -> None:
        self._context = context
        self._storage = context.storage
        self._stopping = Stopping(context.storage, context.queue, context.clock)
        self._looks = asyncio.Semaphore(_LOOKED_AT)
        #: Seconds for which due jobs are left to workers that come before this one.
        self._patience = 0.0
        self._ranked_at = float("-inf")

    async def run(self) -> None:
        """Fire until cancelled."""
        troubles = 0
        while True:
            try:
                await self._rank()
                fired = await self.fire(until=self._context.clock() - self._patience)
                pause = 0.0 if fired == _AT_ONCE else await self._pause()
                troubles = 0
            except StorageUnavailable as error:
                troubles += 1
                log.warning("the storage is out of reach; firing nothing", error=str(error))
                pause = self._context.options.trouble_backoff.delay(troubles, floor=0.1)
            await asyncio.sleep(pause)

    async def fire(self, *, until: float) -> int:
        """Fire what was due by then, up to a bound; how many jobs that were. Raises StorageUnavailable."""
        now = self._context.clock()
        jobs = await self._storage.list_due_jobs(until=until, limit=_AT_ONCE)
        if not jobs:
            return 0
        if stopping := [each for each in jobs if is_stopping(each)]:
            await self._go_on_stopping(stopping, now=now)
        decided = await asyncio.gather(*(self._decided(each, now=now) for each in jobs if not is_stopping(each)))
        firings = _within_bounds([each for each in decided if each is not None])
        executions = [each for firing in firings for each in self._executions(firing, now=now)]
        for start in range(0, len(executions), _ADDED_AT_ONCE):
            await self._add(executions[start : start + _ADDED_AT_ONCE])
        for firing in firings:
            await self._end_replaced(firing)
        stored = await self._storage.put_jobs(await self._advanced(firings))
        self._context.reach(FaultPoint.TICKS_ADVANCED)
        log.info("fired", jobs=len(firings), executions=len(executions), elsewhere=sum(each is None for each in stored))
        return len(jobs)

    async def _go_on_stopping(self, jobs: Sequence[Job], *, now: float) -> None:
        """Tell, beside all else, what was not told in time that its job was stopped: whoever stopped it has died."""
        for job in await self._storage.put_jobs([replace(each, due_at=now + STOP_SECONDS) for each in jobs]):
            if job is not None:
                log.info("going on with a stop that was not finished", task=job.task_id, job=job.id)
                self._stopping.go_on(job)

    async def _decided(self, job: Job, *, now: float) -> Firing | None:
        """What the job fires; None where that cannot be told because of a defect, which is reported."""
        try:
            late = job.due_at is not None and job.due_at < now - MISSED_AFTER
            # Years of missed ticks take a while to count.
            firing = await asyncio.to_thread(due_ticks, job, now=now) if late else due_ticks(job, now=now)
            if firing.ticks:
                self._context.routing.lane_for(job.task_id)
            if firing.ticks and job.schedule is not None and job.schedule.overlap is not Overlap.ALLOW:
                async with self._looks:
                    firing = with_overlap(firing, await self._unfinished(job))
        except InvalidInput as error:
            return refused(firing, str(error))
        except FastlaneError:
            raise
        except Exception as error:
            await self._put_off(job, error, now=now)
            return None
        return firing

    async def _unfinished(self, job: Job) -> set[str]:
        """Ids of the job's executions that have not ended, so far as they matter, and of a retry that is owed."""
        newest = await self._storage.list_executions(job.id, task_id=job.task_id, cursor=None, limit=_NEWEST)
        for execution in newest.items:
            if execution.retry_id is not None and execution.owes_at is not None:
                await add_next_attempt(self._context, execution)
        page = await self._storage.list_unfinished_of_job(
            job.id, task_id=job.task_id, cursor=None, limit=2 * MOST_QUEUED
        )
        return {each.id for each in page.items}

    def _executions(self, firing: Firing, *, now: float) -> Sequence[Execution]:
        if not firing.ticks:
            return ()
        lane = self._context.routing.lane_for(firing.job.task_id).name
        return [execution_of(firing.job, tick, lane=lane, now=now) for tick in firing.ticks]

    async def _add(self, executions: Sequence[Execution]) -> None:
        await self._storage.add_executions(executions)
        self._context.reach(FaultPoint.TICKS_ADDED)
        try:
            await self._context.queue.put([queue_item(each, self._context.routing) for each in executions])
        except QueueUnavailable as error:
            log.warning("the queue did not take what fired; it will be put there later", error=str(error))
        self._context.reach(FaultPoint.TICKS_QUEUED)

    async def _end_replaced(self, firing: Firing) -> None:
        schedule = firing.job.schedule
        if firing.ticks and schedule is not None and schedule.overlap is Overlap.REPLACE:
            # Not of later ticks: another worker may have fired those since this one looked.
            await self._stopping.stop_unfinished(firing.job, before_tick=min(firing.ticks))

    async def _advanced(self, firings: Sequence[Firing]) -> Sequence[Job]:
        jobs = []
        for number, firing in enumerate(firings):
            try:
                jobs.append(advanced(firing))
            except Exception as error:
                await self._put_off(firing.job, error, now=self._context.clock())
            if number % _SLICE == _SLICE - 1:
                await asyncio.sleep(0)
        return jobs

    async def _put_off(self, job: Job, error: Exception, *, now: float) -> None:
        """Leave a job whose schedule cannot be fired alone for a while, so that it is not in the way of others."""
        log.error("a schedule could not be fired", task=job.task_id, job=job.id, exc_info=error)
        message = f"the schedule of job {job.id} of task {job.task_id} could not be fired: {error!r}"
        self._context.report(
            error,
            Event(
                kind=EventKind.LOOP_CRASHED,
                at=now,
                task_id=job.task_id,
                job_id=job.id,
                worker=self._context.worker,
                message=message,
            ),
        )
        await self._storage.put_jobs([replace(job, due_at=now + _DEFECT_DELAY)])

    async def _pause(self) -> float:
        """Seconds until something is due, or until it is time to look whether somebody has made something due."""
        poll = self._context.options.poll_seconds
        next_at = await self._storage.next_due_job()
        if next_at is None:
            return poll
        return min(poll, max(_SHORTEST_PAUSE, next_at + self._patience - self._context.clock()))

    async def _rank(self) -> None:
        """Find out how many workers come before this one."""
        now = self._context.clock()
        if now - self._ranked_at < _RANK_SECONDS:
            return
        workers = await live_reports(self._storage, WORKERS_SCOPE, now=now)
        before = sum(name < self._context.worker and _fires(report) for name, report in workers.items())
        self._patience = _STAGGER * min(before, _MOST_STAGGERED)
        self._ranked_at = now


def _fires(report: JsonObject) -> bool:
    left_out = report.get("leftOut")
    return not (isinstance(left_out, Sequence) and "jobs" in left_out)


def _within_bounds(firings: Sequence[Firing]) -> Sequence[Firing]:
    """As many as may be fired together; the others stay due."""
    executions = 0
    for number, firing in enumerate(firings):
        executions += len(firing.ticks)
        if executions > _MOST_FIRED and number:
            return firings[:number]
    return firings
