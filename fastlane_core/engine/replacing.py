"""Replacing a job by its id: its request, its schedule and what waits for it, as one."""

from __future__ import annotations

from dataclasses import dataclass

from fastlane_core.contracts.queue import Queue
from fastlane_core.contracts.storage import Storage, Submission, Submitted
from fastlane_core.engine.identifiers import replacement_id
from fastlane_core.engine.stopping import Stopping
from fastlane_core.engine.submission import JobOrder, JobSubmission
from fastlane_core.errors import Conflict, PreconditionFailed, RevisionConflict
from fastlane_core.models import Job
from fastlane_core.quick_dataclass import replace

#: Writers of one job are its callers and its schedule; more conflicts in a row than this are a defect.
_TRIES = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class Precondition:
    """What must hold of the stored job."""

    #: Its generation; None for any.
    generation: int | None = None
    #: That there is none yet.
    absent: bool = False

    def check(self, job: Job | None) -> None:
        """Raises PreconditionFailed."""
        if self.absent and job is not None:
            raise PreconditionFailed(f"task {job.task_id} has a job {job.id} already")
        if self.generation is None:
            return
        if job is None:
            raise PreconditionFailed(f"there is no such job, so none of generation {self.generation}")
        if job.generation != self.generation:
            raise PreconditionFailed(f"job {job.id} is of generation {job.generation}, not {self.generation}")


class JobReplacement:
    """Makes a job with its caller's id, or puts a new request in the place of the stored one."""

    def __init__(self, storage: Storage, queue: Queue, submission: JobSubmission, stopping: Stopping) -> None:
        self._storage = storage
        self._queue = queue
        self._submission = submission
        self._stopping = stopping

    async def put(self, order: JobOrder, precondition: Precondition) -> Submitted:
        """Store the job of the order's id; durable when it returns. A stopped one goes on by the new request.

        Executions of the earlier request that have not begun end as stopped; those that have go on, without retries.
        With an idempotency key, the same order as the last is answered as the first time.
        Raises InvalidInput and StorageUnavailable as a submission does, PreconditionFailed, and Conflict where the key
        came with another order.
        """
        wanted = self._submission.prepared(order)
        for _ in range(_TRIES):
            stored = await self._storage.get_job(wanted.job.task_id, wanted.job.id)
            if stored is not None and order.idempotency_key and stored.replacement_key == order.idempotency_key:
                if stored.replacement_digest != order.request_digest:
                    raise Conflict(f"the Idempotency-Key {order.idempotency_key} came with another body before")
                execution = await self._storage.get_execution(_execution_id(stored))
                return await self._carried_out(Submitted(job=stored, execution=execution, repeated=True))
            precondition.check(stored)
            await self._submission.limit_task(order)
            try:
                (submitted,) = await self._storage.submit([_replacing(wanted, stored, order)])
            except RevisionConflict:
                continue
            return await self._carried_out(submitted)
        raise RevisionConflict(f"job {wanted.job.id} kept changing: gave up after {_TRIES} tries")

    async def _carried_out(self, submitted: Submitted) -> Submitted:
        """Do what follows, which may be done again should this process end half-way."""
        if submitted.job.generation:
            await self._stopping.supersede(submitted.job)
        if submitted.execution is not None and not submitted.execution.status.is_final:
            await self._submission.enqueue(submitted.execution)
        return submitted


def _replacing(wanted: Submission, stored: Job | None, order: JobOrder) -> Submission:
    job = replace(
        wanted.job,
        idempotency_key=None,
        request_digest=None,
        replacement_key=order.idempotency_key,
        replacement_digest=order.request_digest,
    )
    if stored is not None:
        job = replace(
            job,
            created_at=stored.created_at,
            idempotency_key=stored.idempotency_key,
            request_digest=stored.request_digest,
            generation=stored.generation + 1,
            revision=stored.revision,
        )
    if wanted.execution is None:
        return Submission(job=job, execution=None)
    return Submission(job=job, execution=replace(wanted.execution, id=_execution_id(job), generation=job.generation))


def _execution_id(job: Job) -> str:
    return replacement_id(job.task_id, job.id, job.generation)
