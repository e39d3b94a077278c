"""Accepting a job: stored first, then put in the queue, which may be down: storage is the truth."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field

import structlog

from fastlane_core.contracts.queue import Limit, Queue, QueueItem, job_key, task_key
from fastlane_core.contracts.storage import Storage, Submission, Submitted
from fastlane_core.engine.identifiers import new_ids
from fastlane_core.engine.routing import Routing
from fastlane_core.engine.schedules import begun
from fastlane_core.engine.task_limits import TaskLimits
from fastlane_core.errors import InvalidInput, QueueUnavailable
from fastlane_core.models import Execution, Job, JsonObject, RetryPolicy, RunSpec, Schedule, Status
from fastlane_core.quick_dataclass import quick_dataclass

log = structlog.get_logger(__name__)

#: Executions that one call puts in the queue.
_TOGETHER = 1_000
#: Between two such calls: what comes meanwhile shares the next one. A queue is asked in vain no oftener than that.
_PAUSE_SECONDS = 0.02


@quick_dataclass(frozen=True, kw_only=True, slots=True)
class JobOrder:
    """A checked request for a job."""

    task_id: str
    spec: RunSpec
    #: The caller's own id; None makes one.
    job_id: str | None = None
    request_ip: str | None = None
    metadata: JsonObject = field(default_factory=dict)
    retries: int = 0
    retry: RetryPolicy | None = None
    start_at: float | None = None
    #: Has no state yet.
    schedule: Schedule | None = None
    expiration: float | None = None
    priority: int = 0
    #: Executions of the job, and of its task, that may hold a slot at a time; None says nothing about them.
    job_concurrency: int | None = None
    task_concurrency: int | None = None
    notifications: Mapping[str, JsonObject] = field(default_factory=dict)
    idempotency_key: str | None = None
    request_digest: str | None = None


class JobSubmission:
    """Turns orders into stored jobs with their first execution."""

    def __init__(self, storage: Storage, queue: Queue, routing: Routing, clock: Callable[[], float]) -> None:
        self._storage = storage
        self._queue = queue
        self._enqueuing = Enqueuing(queue, routing)
        self._task_limits = TaskLimits(storage, queue, clock)
        self._routing = routing
        self._clock = clock

    async def submit(self, order: JobOrder) -> Submitted:
        """Accept one job: durable when it returns, and soon in the queue.

        Raises what `prepared` raises, and StorageUnavailable.
        """
        (submitted,) = await self._storage.submit([self.prepared(order)])
        if submitted.repeated:
            return submitted
        # Not before: a request that is repeated, or refused for its key, says nothing new about the task.
        await self.limit_task(order)
        if submitted.execution is not None:
            await self._enqueuing.add(submitted.execution)
        return submitted

    async def settled(self) -> None:
        """Return when the queue has, or has refused, what was accepted before."""
        await self._enqueuing.settled()

    async def store_many(self, submissions: Sequence[Submission]) -> Sequence[Submitted]:
        """Store what was `prepared`, one answer each; durable when it returns. Raises StorageUnavailable."""
        return await self._storage.submit(submissions)

    async def enqueue_new(self, submitted: Sequence[Submitted]) -> None:
        """Put in the queue what was stored, and not before."""
        new = [each.execution for each in submitted if each.execution is not None and not each.repeated]
        await enqueue(self._queue, self._routing, *new)

    async def limit_task(self, order: JobOrder) -> None:
        """Have the task's limit be as an accepted order says, if it says so. Raises StorageUnavailable."""
        if order.task_concurrency is not None:
            await self._task_limits.ensure(order.task_id, order.task_concurrency)

    async def enqueue(self, execution: Execution) -> None:
        """Put a stored execution in the queue, together with others that come at the same time."""
        await self._enqueuing.add(execution)
        await self.settled()

    def prepared(self, order: JobOrder, ids: Iterator[str] | None = None) -> Submission:
        """The job, with its first execution unless its schedule makes that, as they are to be stored.

        Raises InvalidInput where no lane takes the task, an option belongs to another runner, the runner refuses it, or
        its schedule never fires. `ids` are taken for what is new.
        """
        lane = self._routing.lane_for(order.task_id).name
        runner = self._routing.runner_of(lane)
        for option in order.spec.options:
            if option != runner.name:
                raise InvalidInput(
                    option, f"jobs of this task go to the runner {runner.name}, which has no such options"
                )
        runner.check(lane, order.spec)
        now = self._clock()
        ids = ids or new_ids(2)
        job = Job(
            id=order.job_id or next(ids),
            task_id=order.task_id,
            spec=order.spec,
            created_at=now,
            modified_at=now,
            request_ip=order.request_ip,
            metadata=order.metadata,
            retries=order.retries,
            retry=order.retry,
            start_at=order.start_at,
            schedule=order.schedule,
            expiration=order.expiration,
            priority=order.priority,
            concurrency=order.job_concurrency,
            notifications=order.notifications,
            idempotency_key=order.idempotency_key,
            request_digest=order.request_digest,
        )
        if job.schedule is not None:
            job = begun(job, now=now)
            if job.due_at is None:
                raise InvalidInput("cron", "it does not come before the job's end")
            return Submission(job=job, execution=None)
        execution = Execution(
            id=next(ids),
            job_id=job.id,
            task_id=job.task_id,
            spec=job.spec,
            lane=lane,
            status=Status.ENQUEUED,
            created_at=now,
            updated_at=now,
            priority=job.priority,
            job_concurrency=job.most_running,
            due_at=job.start_at or 0.0,
            expiration=job.expiration,
            request_ip=job.request_ip,
        )
        return Submission(job=job, execution=execution)


class Enqueuing:
    """Puts stored executions in the queue, in their order: by one call all those that came during the call before.

    Whoever submits need not wait for it, as the queue is but an index of the storage.
    """

    def __init__(self, queue: Queue, routing: Routing) -> None:
        self._queue = queue
        self._routing = routing
        #: What the next call puts, and what the one under way does.
        self._next: _Batch | None = None
        self._current: _Batch | None = None
        self._putting: asyncio.Task[None] | None = None

    async def add(self, execution: Execution) -> None:
        """Have an execution put in the queue soon; waits only when very many are on their way to one that is slow."""
        while self._next is not None and len(self._next.executions) >= _TOGETHER:
            await self._next.ended.wait()
        if self._next is None:
            self._next = _Batch()
        self._next.executions.append(execution)
        if self._putting is None:
            self._putting = asyncio.create_task(self._put_all())

    async def settled(self) -> None:
        """Return when the queue has, or has refused, what was added before."""
        newest = self._next or self._current
        if newest is not None:
            await newest.ended.wait()

    async def _put_all(self) -> None:
        try:
            while self._next is not None:
                self._current, self._next = self._next, None
                try:
                    await enqueue(self._queue, self._routing, *self._current.executions)
                except Exception:
                    log.exception("accepted executions are not in the queue; they will be put there later")
                finally:
                    self._current.ended.set()
                await asyncio.sleep(_PAUSE_SECONDS)
        finally:
            self._current = self._putting = None


class _Batch:
    """Executions that are put in the queue by one call."""

    def __init__(self) -> None:
        self.executions: list[Execution] = []
        self.ended = asyncio.Event()


async def enqueue(queue: Queue, routing: Routing, *executions: Execution) -> None:
    """Put stored executions in the queue. One that is down is no error: the reconciler puts them there later."""
    try:
        await queue.put([queue_item(execution, routing) for execution in executions])
    except QueueUnavailable as error:
        log.warning("the queue did not take executions; they will be put there later", error=str(error))


def queue_item(execution: Execution, routing: Routing) -> QueueItem:
    """The execution as the queue knows it, with the limits that records and settings have for it."""
    limits = []
    if execution.job_concurrency is not None:
        limits.append(Limit(key=job_key(execution.task_id, execution.job_id), capacity=execution.job_concurrency))
    of_task = routing.task_limit(execution.task_id)
    if of_task is not None:
        limits.append(Limit(key=task_key(execution.task_id), capacity=of_task))
    return QueueItem(
        execution_id=execution.id,
        task_id=execution.task_id,
        lane=execution.lane,
        priority=execution.priority,
        due_at=execution.due_at,
        limits=tuple(limits),
    )
