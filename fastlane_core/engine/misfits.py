"""Finding what does not fit between storage, queue and engines. Nothing here changes anything.

The reconciler mends what is found; `fastlane doctor` only tells of it. Every look is bounded, however much there is.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Container, Sequence
from dataclasses import dataclass

from fastlane_core.contracts.queue import Queue
from fastlane_core.contracts.runner import OwnedRun, Runner
from fastlane_core.contracts.storage import Page, Storage
from fastlane_core.engine.lifecycle import waited_too_long
from fastlane_core.engine.routing import Routing
from fastlane_core.errors import InvalidInput
from fastlane_core.models import Execution, Mending, Status

#: Records asked for in one call.
PAGE = 500
#: Waiting items of the queue that are compared with the storage in one look, and of one lane.
_HEADS = 200
_HEADS_PER_LANE = 50
#: Seconds that a record has not changed before a difference is put down to a crash.
_SETTLED = 3.0
#: Seconds after which a run without a record is taken for a leftover.
_ORPHAN_AGE = 60.0
#: Seconds after which whoever works on an execution should have heard that it is to stop, and should have stopped it.
_UNHEARD = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Misfit:
    """One thing that does not fit."""

    kind: Mending
    #: What was found, as the beginning of a sentence.
    message: str
    execution_id: str
    #: Its record, if there is one.
    execution: Execution | None = None
    #: The lane that it is to go to, or why no lane takes it, for one whose lane is closed.
    target: str | InvalidInput = ""
    #: The run on an engine, for one that is left there.
    run: OwnedRun | None = None


class Inspection:
    """Compares; what this process has in hand itself is left out."""

    def __init__(
        self,
        storage: Storage,
        queue: Queue,
        routing: Routing,
        clock: Callable[[], float],
        *,
        in_hand: Container[str] = (),
    ) -> None:
        """`in_hand` has the ids of executions that this process looks after."""
        self._storage = storage
        self._queue = queue
        self._routing = routing
        self._clock = clock
        self._in_hand = in_hand
        self._next_lane = 0

    async def unfinished(self, cursor: str | None) -> tuple[Sequence[Misfit], Page[Execution]]:
        """What does not fit of one page of executions that have not ended, and that page.

        Raises StorageUnavailable, QueueUnavailable, as do the others.
        """
        page = await self._storage.list_unfinished(cursor=cursor, limit=PAGE)
        now = self._clock()
        settled = [each for each in page.items if each.updated_at < now - _SETTLED and each.id not in self._in_hand]
        if not settled:
            return [], page
        present = await self._queue.contains([each.id for each in settled])
        found = (self._of_unfinished(each, now, is_queued=each.id in present) for each in settled)
        return [each for each in found if each is not None], page

    def _of_unfinished(self, execution: Execution, now: float, *, is_queued: bool) -> Misfit | None:
        def misfit(kind: Mending, message: str) -> Misfit:
            return Misfit(kind=kind, message=message, execution_id=execution.id, execution=execution)

        waits = execution.status is Status.ENQUEUED and execution.place is None
        if waits and execution.expiration is not None and now > execution.expiration + _SETTLED:
            return misfit(Mending.EXPIRED_WAITING, "its expiration has passed while it waits")
        if waits and waited_too_long(execution, now=now - _SETTLED) is not None:
            return misfit(Mending.EXPIRED_WAITING, "it waits for longer than it may")
        if not is_queued:
            return misfit(Mending.MISSING_IN_QUEUE, "it is missing in the queue")
        asked_at = execution.stop_requested_at
        if asked_at is not None and now - asked_at > _UNHEARD:
            return misfit(Mending.STOP_UNHEARD, f"it was asked to stop {now - asked_at:.0f} s ago and has not ended")
        return None

    async def heads(self) -> Sequence[Misfit]:
        """Items near the heads of the lanes that should not wait any more."""
        lanes = sorted(name for name, stats in (await self._queue.stats()).items() if stats.waiting or stats.held)
        first = self._next_lane % len(lanes) if lanes else 0
        found: list[Misfit] = []
        looked_at = 0
        for name in lanes[first:] + lanes[:first]:
            if looked_at >= _HEADS:
                break
            self._next_lane += 1
            items = await self._queue.peek(name, min(_HEADS_PER_LANE, _HEADS - looked_at))
            looked_at += len(items)
            for item in items:
                # Read after the queue: a record is always stored before its item.
                execution = await self._storage.get_execution(item.execution_id)
                if execution is None:
                    kind, message = Mending.UNKNOWN_IN_QUEUE, "the queue holds it, but the storage does not know it"
                elif execution.status.is_final and execution.updated_at < self._clock() - _SETTLED:
                    kind, message = Mending.ENDED_IN_QUEUE, f"it waits in the queue, but has ended: {execution.status}"
                else:
                    continue
                found.append(Misfit(kind=kind, message=message, execution_id=item.execution_id, execution=execution))
        return found

    async def closed_lanes(self) -> AsyncIterator[Misfit]:
        """What waits in lanes that no runner offers any more."""
        for lane, stats in (await self._queue.stats()).items():
            if self._routing.lane(lane) is not None or not stats.waiting + stats.delayed + stats.held:
                continue
            for item in await self._queue.peek(lane, PAGE):
                target: str | InvalidInput
                try:
                    target = self._routing.lane_for(item.task_id).name
                except InvalidInput as error:
                    target = error
                yield Misfit(
                    kind=Mending.LANE_CLOSED,
                    message=f"no runner offers its lane {lane} any more",
                    execution_id=item.execution_id,
                    target=target,
                )

    async def owing(self) -> Sequence[Misfit]:
        """Ended executions whose next attempt was not made."""
        until = self._clock() - _SETTLED
        return [
            Misfit(
                kind=Mending.RETRY_OWED,
                message="the attempt after it was not made",
                execution_id=execution.id,
                execution=execution,
            )
            for execution in await self._storage.list_owing(until=until, limit=PAGE)
            if execution.id not in self._in_hand
        ]

    async def leftovers(self, runner: Runner, place: str) -> AsyncIterator[Misfit]:
        """Runs on a place that no unfinished execution has there. Raises EngineUnavailable as well."""
        async for run in runner.list_owned(place):
            if run.execution_id in self._in_hand:
                continue
            execution = await self._storage.get_execution(run.execution_id)
            if why := self._why_leftover(run, execution, place):
                yield Misfit(
                    kind=Mending.LEFTOVER_RUN,
                    message=f"a run of it is left on {place}: {why}",
                    execution_id=run.execution_id,
                    execution=execution,
                    run=run,
                )

    def _why_leftover(self, run: OwnedRun, execution: Execution | None, place: str) -> str:
        """Why nobody needs the run any more; "" if somebody does, or may."""
        now = self._clock()
        if execution is None:
            return "no record of it" if now - run.created_at > _ORPHAN_AGE else ""
        if execution.status.is_final:
            return "it has ended" if now - execution.updated_at > _SETTLED else ""
        if execution.place is not None and execution.place != place and run.fence < execution.fence:
            return f"it runs on {execution.place} now"
        return ""
