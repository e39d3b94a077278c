"""Stopping jobs and executions on request: recorded at once, carried out by whoever holds the lease."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Protocol

import structlog

from fastlane_core.contracts.queue import Queue
from fastlane_core.contracts.storage import Storage
from fastlane_core.engine.lifecycle import next_attempt, stop_requested, superseded
from fastlane_core.engine.records import Fenced, change_execution
from fastlane_core.engine.schedules import is_stopping, stopped_for_good
from fastlane_core.engine.topics import execution_topic, worker_topic
from fastlane_core.errors import NotFound, QueueUnavailable, RevisionConflict
from fastlane_core.models import Execution, Job
from fastlane_core.quick_dataclass import replace

log = structlog.get_logger(__name__)

_PAGE = 100


class Step(Protocol):
    """A step of the life cycle."""

    def __call__(self, execution: Execution, *, now: float) -> Execution: ...


class Stopping:
    """Answers at once, whatever the engine does; the result shows as `stopped` when the run is dead. Idempotent."""

    def __init__(self, storage: Storage, queue: Queue, clock: Callable[[], float]) -> None:
        self._storage = storage
        self._queue = queue
        self._clock = clock
        #: Stopped jobs whose executions are being told, by task and id.
        self._going_on: dict[tuple[str, str], asyncio.Task[None]] = {}

    async def stop_job(self, task_id: str, job_id: str, *, within: float | None = None) -> Job:
        """End what the job runs or waits for, its retries and its schedule. Raises NotFound, StorageUnavailable.

        What is not ended `within` so many seconds is ended after this has returned, or, should this process die
        meanwhile, by a scheduler: the job `is_stopping` until all were told.
        """
        job = await self._mark_job(task_id, job_id)
        # The oldest come first, and with them the one that was made with the job, which does not ask for its job.
        cursor = await self._end_page(job, _any, stop_requested, None)
        if cursor is None:
            await self._note_told(job)
            return job
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                await asyncio.shield(self.go_on(job, cursor))
        return job

    def go_on(self, job: Job, cursor: str | None = None) -> asyncio.Task[None]:
        """Tell all that a stopped job runs or waits for, in the background, unless that is being done here already."""
        found = self._going_on.get((job.task_id, job.id))
        if found is not None:
            return found
        telling = asyncio.create_task(self._tell_all(job, cursor))
        self._going_on[job.task_id, job.id] = telling
        telling.add_done_callback(lambda _: self._are_told(job, telling))
        return telling

    def _are_told(self, job: Job, telling: asyncio.Task[None]) -> None:
        del self._going_on[job.task_id, job.id]
        if not telling.cancelled() and (error := telling.exception()) is not None:
            log.warning("not all executions of a stopped job could be told; a scheduler goes on", error=str(error))

    async def _tell_all(self, job: Job, cursor: str | None) -> None:
        while True:
            stored = await self._storage.get_job(job.task_id, job.id)
            if stored is None or stored.stop_requested_at != job.stop_requested_at:
                # It was asked to go on.
                return
            cursor = await self._end_page(job, _any, stop_requested, cursor)
            if cursor is None:
                break
        await self._note_told(job)

    async def _note_told(self, job: Job) -> None:
        if is_stopping(job):
            # Where somebody else has changed the job, a scheduler finds out that there is nothing left to be told.
            with suppress(RevisionConflict):
                await self._storage.put_job(replace(job, due_at=None))

    async def stop_unfinished(self, job: Job, *, but: Collection[str] = (), before_tick: float | None = None) -> None:
        """End what the job runs or waits for, and not its schedule. Raises StorageUnavailable.

        Spares those ids, and the executions of `before_tick` and of later ticks.
        """

        def wanted(execution: Execution) -> bool:
            is_earlier = before_tick is None or execution.tick is None or execution.tick < before_tick
            return is_earlier and execution.id not in but

        await self._end_unfinished(job, wanted, stop_requested)

    async def supersede(self, job: Job) -> None:
        """End what has not begun of the requests before the job's present one. Raises StorageUnavailable."""
        await self._end_unfinished(job, lambda each: each.generation < job.generation, superseded)

    async def stop_execution(self, task_id: str, job_id: str, execution_id: str) -> Execution:
        """End one execution, and what tries it again; other executions and the schedule go on.

        Raises NotFound, StorageUnavailable.
        """
        execution = await self._storage.get_execution(execution_id)
        if execution is None or (execution.task_id, execution.job_id) != (task_id, job_id):
            raise NotFound(f"job {job_id} of task {task_id} has no execution {execution_id}")
        stopped = await self._end(execution, stop_requested)
        await self._end_retries(stopped)
        return stopped

    async def _end_retries(self, execution: Execution) -> None:
        while execution.status.is_final and execution.retry_id is not None:
            attempt = await self._storage.get_execution(execution.retry_id)
            if attempt is None:
                if execution.owes_at is None:
                    return
                # Made as stopped: whoever is about to make it finds it there, and leaves it.
                now = self._clock()
                attempt = stop_requested(next_attempt(execution, lane=execution.lane, now=now), now=now)
                await self._storage.add_executions([attempt])
                attempt = await self._storage.get_execution(attempt.id) or attempt
            execution = await self._end(attempt, stop_requested)

    async def _mark_job(self, task_id: str, job_id: str) -> Job:
        while True:
            job = await self._storage.get_job(task_id, job_id)
            if job is None:
                raise NotFound(f"task {task_id} has no job {job_id}")
            if job.stop_requested_at is not None:
                return job
            try:
                return await self._storage.put_job(stopped_for_good(job, now=self._clock()))
            except RevisionConflict:
                continue

    async def _end_unfinished(self, job: Job, wanted: Callable[[Execution], bool], step: Step) -> None:
        cursor: str | None = None
        while (cursor := await self._end_page(job, wanted, step, cursor)) is not None:
            pass

    async def _end_page(
        self, job: Job, wanted: Callable[[Execution], bool], step: Step, cursor: str | None
    ) -> str | None:
        """The cursor of the next page."""
        page = await self._storage.list_unfinished_of_job(job.id, task_id=job.task_id, cursor=cursor, limit=_PAGE)
        await asyncio.gather(*(self._end(each, step) for each in page.items if wanted(each)))
        return page.cursor

    async def _end(self, execution: Execution, step: Step) -> Execution:
        now = self._clock()
        try:
            changed = await change_execution(
                self._storage, execution, lambda current: step(current, now=now), fenced=False
            )
        except Fenced:
            # It had ended, and retention has removed it meanwhile.
            return execution
        if not changed.status.is_final and changed.stop_requested_at is None:
            return changed
        try:
            await self._queue.cancel(changed.id)
            await self._queue.publish(execution_topic(changed.id))
            if changed.worker is not None:
                await self._queue.publish(worker_topic(changed.worker))
        except QueueUnavailable as error:
            # The record tells: whoever claims it next sees the request.
            log.warning("the queue could not be told of a stop", execution=changed.id, error=str(error))
        return changed


def _any(execution: Execution) -> bool:
    return True
