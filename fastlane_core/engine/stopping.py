"""Stopping jobs and executions on request: recorded at once, carried out by whoever holds the lease."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import structlog

from fastlane_core.contracts.queue import Queue
from fastlane_core.contracts.storage import Storage
from fastlane_core.engine.lifecycle import stop_requested
from fastlane_core.engine.records import change_execution
from fastlane_core.engine.topics import execution_topic, worker_topic
from fastlane_core.errors import NotFound, QueueUnavailable, RevisionConflict
from fastlane_core.models import Execution, Job

log = structlog.get_logger(__name__)

_PAGE = 100


class Stopping:
    """Answers at once, whatever the engine does; the result shows as `stopped` when the run is dead. Idempotent."""

    def __init__(self, storage: Storage, queue: Queue, clock: Callable[[], float]) -> None:
        self._storage = storage
        self._queue = queue
        self._clock = clock

    async def stop_job(self, task_id: str, job_id: str) -> Job:
        """End what the job runs or waits for, and its retries. Raises NotFound, StorageUnavailable."""
        job = await self._mark_job(task_id, job_id)
        cursor: str | None = None
        while True:
            page = await self._storage.list_unfinished_of_job(job_id, task_id=task_id, cursor=cursor, limit=_PAGE)
            await asyncio.gather(*(self._stop(each) for each in page.items))
            cursor = page.cursor
            if cursor is None:
                return job

    async def stop_execution(self, task_id: str, job_id: str, execution_id: str) -> Execution:
        """End one execution, and the job's retries. Raises NotFound, StorageUnavailable."""
        execution = await self._storage.get_execution(execution_id)
        if execution is None or (execution.task_id, execution.job_id) != (task_id, job_id):
            raise NotFound(f"job {job_id} of task {task_id} has no execution {execution_id}")
        await self._mark_job(task_id, job_id)
        return await self._stop(execution)

    async def _mark_job(self, task_id: str, job_id: str) -> Job:
        while True:
            job = await self._storage.get_job(task_id, job_id)
            if job is None:
                raise NotFound(f"task {task_id} has no job {job_id}")
            if job.stop_requested_at is not None:
                return job
            try:
                return await self._storage.put_job(replace(job, stop_requested_at=self._clock()))
            except RevisionConflict:
                continue

    async def _stop(self, execution: Execution) -> Execution:
        now = self._clock()
        stopped = await change_execution(
            self._storage, execution, lambda current: stop_requested(current, now=now), fence=None
        )
        try:
            await self._queue.cancel(stopped.id)
            await self._queue.publish(execution_topic(stopped.id))
            if stopped.worker is not None:
                await self._queue.publish(worker_topic(stopped.worker))
        except QueueUnavailable as error:
            # The record tells: whoever claims it next sees the request.
            log.warning("the queue could not be told of a stop", execution=stopped.id, error=str(error))
        return stopped
