"""Running jobs again because somebody asks for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import structlog

from fastlane_core.contracts.queue import Queue
from fastlane_core.contracts.storage import Storage, Submission
from fastlane_core.engine.lifecycle import asked_again, brought_forward, looked_at
from fastlane_core.engine.records import Fenced, change_execution
from fastlane_core.engine.routing import Routing
from fastlane_core.engine.stopping import Stopping
from fastlane_core.engine.submission import enqueue
from fastlane_core.errors import Conflict, FastlaneError, InvalidInput, NotFound, QueueUnavailable, RevisionConflict
from fastlane_core.models import Execution, Failure, Job, Reason, Status
from fastlane_core.quick_dataclass import replace

log = structlog.get_logger(__name__)

#: Writers of one job are its callers and its schedule; more conflicts in a row than this are a defect.
_TRIES = 50
_PAGE = 100
#: Jobs looked at together when many are to be retried.
_TOGETHER = 25


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """Which jobs of a task, by how their newest execution ended."""

    statuses: frozenset[Status] = frozenset({Status.FAILED, Status.TIMEDOUT, Status.EXPIRED})
    #: None for any.
    reasons: frozenset[Reason] | None = None
    #: When it ended: from, and before.
    since: float | None = None
    until: float | None = None

    def has(self, execution: Execution) -> bool:
        """Whether a job with this newest execution is one of them."""
        ended_at = execution.finished_at or execution.updated_at
        return (
            execution.status in self.statuses
            and (self.reasons is None or execution.reason in self.reasons)
            and (self.since is None or ended_at >= self.since)
            and (self.until is None or ended_at < self.until)
        )


@dataclass(kw_only=True, slots=True)
class RetriedMany:
    """What became of a stretch of a task's jobs."""

    retried: list[Execution] = field(default_factory=list)
    #: Jobs of the selection that were not retried, and why.
    refused: list[tuple[str, str]] = field(default_factory=list)
    looked_at: int = 0
    #: Goes on behind them; None where no job is left.
    cursor: str | None = None


class Retrying:
    """Answers at once, whatever the engine does."""

    def __init__(
        self, storage: Storage, queue: Queue, routing: Routing, stopping: Stopping, clock: Callable[[], float]
    ) -> None:
        self._storage = storage
        self._queue = queue
        self._routing = routing
        self._stopping = stopping
        self._clock = clock

    async def retry_job(self, task_id: str, job_id: str, *, force: bool = False) -> Execution:
        """Run the job once more, now; the execution that does it. A stopped job goes on, but not its schedule.

        A retry that waits for its time is brought forward; asked twice at once, there is one. Raises Conflict while it
        runs or waits for its turn, unless `force` stops that first, and when its expiration has passed; InvalidInput
        where it was never started, unless `force` starts it before its time; NotFound, StorageUnavailable.
        """
        for _ in range(_TRIES):
            job = await self._storage.get_job(task_id, job_id)
            if job is None:
                raise NotFound(f"task {task_id} has no job {job_id}")
            newest = await self._storage.list_executions(job_id, task_id=task_id, cursor=None, limit=1)
            if not newest.items:
                raise InvalidInput("", f"job {job_id} of task {task_id} has no execution yet that could be retried")
            last = newest.items[0]
            if job.expiration is not None and self._clock() > job.expiration:
                raise Conflict(f"the expiration of job {job_id} has passed: it must not start any more")
            unfinished = await self._storage.list_unfinished_of_job(job_id, task_id=task_id, cursor=None, limit=_PAGE)
            if unfinished.items:
                only = unfinished.items[0] if len(unfinished.items) == 1 else None
                if only is not None and self._waits_for_its_time(only) and (force or only.retry_of is not None):
                    return await self._bring_forward(only)
                if not force:
                    raise self._refusal(job, unfinished.items)
                await self._stopping.stop_unfinished(job)
            again = asked_again(last, job, lane=self._lane(last), takes_over=bool(unfinished.items), now=self._clock())
            try:
                (submitted,) = await self._storage.submit(
                    [Submission(job=_revived(job, self._clock()), execution=again)]
                )
            except RevisionConflict:
                continue
            with suppress(Fenced):
                # Unless it was removed by retention meanwhile.
                await change_execution(
                    self._storage,
                    last,
                    lambda current: looked_at(current, Failure.REPLAYED, now=self._clock()),
                    fenced=False,
                )
            if submitted.execution is not None and self._waits_for_its_time(submitted.execution):
                # Its retry was made by itself just now, for later.
                return await self._bring_forward(submitted.execution)
            await enqueue(self._queue, self._routing, again)
            return submitted.execution or again
        raise RevisionConflict(f"job {job_id} kept changing: gave up after {_TRIES} tries")

    async def retry_many(
        self, task_id: str, selection: Selection, *, cursor: str | None, limit: int, seconds: float
    ) -> RetriedMany:
        """Run jobs of a task once more, most recently modified first: up to `limit`, and what `seconds` allow.

        Raises NotFound, StorageUnavailable; InvalidInput for a cursor that it did not give.
        """
        if await self._storage.get_task(task_id) is None:
            raise NotFound(f"there is no task {task_id}")
        done = RetriedMany(cursor=cursor)
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while True:
            room = limit - len(done.retried)
            page = await self._storage.list_jobs(task_id, cursor=done.cursor, limit=min(room, _TOGETHER))
            for execution in await asyncio.gather(*(self._retry_selected(job, selection, done) for job in page.items)):
                if execution is not None:
                    done.retried.append(execution)
            done.looked_at += len(page.items)
            done.cursor = page.cursor
            if done.cursor is None or len(done.retried) >= limit or loop.time() >= until:
                return done

    async def _retry_selected(self, job: Job, selection: Selection, done: RetriedMany) -> Execution | None:
        newest = await self._storage.list_executions(job.id, task_id=job.task_id, cursor=None, limit=1)
        if not newest.items or not selection.has(newest.items[0]):
            return None
        try:
            return await self.retry_job(job.task_id, job.id)
        except (Conflict, InvalidInput) as error:
            done.refused.append((job.id, str(error)))
            return None

    def _refusal(self, job: Job, unfinished: Sequence[Execution]) -> FastlaneError:
        if len(unfinished) == 1 and self._waits_for_its_time(unfinished[0]):
            return InvalidInput("", f"job {job.id} is still scheduled: ?force=true starts it now")
        return Conflict(f"job {job.id} is {unfinished[-1].status}: wait for its end, or ?force=true stops it first")

    def _waits_for_its_time(self, execution: Execution) -> bool:
        return execution.status is Status.ENQUEUED and execution.due_at > self._clock()

    def _lane(self, last: Execution) -> str:
        try:
            return self._routing.lane_for(last.task_id).name
        except InvalidInput:
            return last.lane

    async def _bring_forward(self, execution: Execution) -> Execution:
        now = self._clock()
        moved = await change_execution(
            self._storage, execution, lambda current: brought_forward(current, now=now), fenced=False
        )
        if not moved.status.is_final:
            try:
                # The queue leaves an item that it has as it is.
                await self._queue.cancel(moved.id)
            except QueueUnavailable as error:
                log.warning("the queue did not hear of a new time", execution=moved.id, error=str(error))
            await enqueue(self._queue, self._routing, moved)
        return moved


def _revived(job: Job, now: float) -> Job:
    return replace(job, stop_requested_at=None, modified_at=now)
