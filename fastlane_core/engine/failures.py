"""What failed for good: running it once more, as it was or edited, or putting it aside; one or thousands at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from fastlane_core.contracts.queue import Queue
from fastlane_core.contracts.storage import Storage
from fastlane_core.engine.lifecycle import asked_again, looked_at
from fastlane_core.engine.records import Fenced, change_execution
from fastlane_core.engine.routing import Routing
from fastlane_core.engine.submission import queue_item
from fastlane_core.errors import InvalidInput, QueueUnavailable, RevisionConflict
from fastlane_core.models import Execution, Failure, Job, RunSpec
from fastlane_core.quick_dataclass import replace

log = structlog.get_logger(__name__)

#: Executions that are stored and put in the queue together.
_TOGETHER = 100
#: Writers of one job are its callers and its schedule; more conflicts in a row than this are a defect.
_TRIES = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class Handled:
    """What became of one that had failed."""

    failed: Execution
    #: The execution that tries it again; None where none does.
    replay: Execution | None = None
    #: Why nothing was done; "" where it was.
    refusal: str = ""


class Failures:
    """Replays and dismisses. Everything may be repeated: a failure is replayed once however often it is asked for."""

    def __init__(self, storage: Storage, queue: Queue, routing: Routing, clock: Callable[[], float]) -> None:
        self._storage = storage
        self._queue = queue
        self._routing = routing
        self._clock = clock

    async def replay(
        self, failed: Sequence[Execution], edited: Callable[[Execution, str], RunSpec]
    ) -> Sequence[Handled]:
        """Run each once more, now, with the spec that `edited` makes of it for the lane that it goes to.

        One whose job is gone or expired, or of which `edited` or its runner raise InvalidInput, is refused by itself.
        Raises StorageUnavailable; what was done until then stays done.
        """
        handled: list[Handled] = []
        for first in range(0, len(failed), _TOGETHER):
            handled += await self._replay_together(failed[first : first + _TOGETHER], edited)
        return handled

    async def dismiss(self, failed: Sequence[Execution]) -> Sequence[Handled]:
        """Put each aside. Raises StorageUnavailable."""
        handled: list[Handled] = []
        for first in range(0, len(failed), _TOGETHER):
            together = failed[first : first + _TOGETHER]
            handled += await asyncio.gather(*(self._dismiss(each) for each in together))
        return handled

    async def _replay_together(
        self, failed: Sequence[Execution], edited: Callable[[Execution, str], RunSpec]
    ) -> Sequence[Handled]:
        handled = await asyncio.gather(*(self._planned(each, edited) for each in failed))
        replays = [each.replay for each in handled if each.replay is not None]
        if replays:
            await self._storage.add_executions(replays)
            try:
                await self._queue.put([queue_item(each, self._routing) for each in replays])
            except QueueUnavailable as error:
                log.warning("the queue did not take replays; they will be put there later", error=str(error))
        await asyncio.gather(
            *(self._mark(each.failed, Failure.REPLAYED) for each in handled if each.replay is not None)
        )
        return handled

    async def _planned(self, failed: Execution, edited: Callable[[Execution, str], RunSpec]) -> Handled:
        if failed.failure is None:
            return Handled(failed=failed, refusal=_not_failed(failed))
        now = self._clock()
        try:
            job = await self._revived(failed)
            if job is None:
                return Handled(failed=failed, refusal=f"its job {failed.job_id} is not stored any more")
            if job.expiration is not None and now > job.expiration:
                return Handled(
                    failed=failed, refusal="the expiration of its job has passed: it must not start any more"
                )
            lane = self._routing.lane_for(failed.task_id).name
            spec = edited(failed, lane)
            self._routing.runner_of(lane).check(lane, spec)
        except InvalidInput as error:
            return Handled(failed=failed, refusal=str(error))
        return Handled(failed=failed, replay=replace(asked_again(failed, job, lane=lane, now=now), spec=spec))

    async def _revived(self, failed: Execution) -> Job | None:
        """The job, which is not a stopped one any more."""
        for _ in range(_TRIES):
            job = await self._storage.get_job(failed.task_id, failed.job_id)
            if job is None or job.stop_requested_at is None:
                return job
            try:
                return await self._storage.put_job(replace(job, stop_requested_at=None, modified_at=self._clock()))
            except RevisionConflict:
                continue
        raise RevisionConflict(f"job {failed.job_id} kept changing: gave up after {_TRIES} tries")

    async def _dismiss(self, failed: Execution) -> Handled:
        if failed.failure is None:
            return Handled(failed=failed, refusal=_not_failed(failed))
        if failed.failure is Failure.REPLAYED:
            return Handled(failed=failed, refusal="it was replayed")
        return Handled(failed=await self._mark(failed, Failure.DISMISSED))

    async def _mark(self, failed: Execution, failure: Failure) -> Execution:
        now = self._clock()
        try:
            return await change_execution(
                self._storage, failed, lambda current: looked_at(current, failure, now=now), fenced=False
            )
        except Fenced:
            # Removed by retention meanwhile.
            return failed


def _not_failed(execution: Execution) -> str:
    if not execution.status.is_final:
        return f"it is {execution.status}"
    return "it is tried again by itself" if execution.retry_id else f"it has not failed: it is {execution.status}"
