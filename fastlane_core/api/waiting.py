"""Why an execution has not started yet: from its record, else from what queue and workers tell."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from fastlane_core.api.context import ApiContext
from fastlane_core.api.times import iso_time
from fastlane_core.contracts.queue import LaneStats, Limit, task_key
from fastlane_core.engine.presence import WORKERS_SCOPE, live_reports
from fastlane_core.errors import QueueUnavailable
from fastlane_core.models import Execution, JsonObject, Status


async def live_workers(context: ApiContext) -> Sequence[JsonObject]:
    """The reports of the workers that live. Raises StorageUnavailable."""
    return list((await live_reports(context.storage, WORKERS_SCOPE, now=context.clock())).values())


class WaitingReasons:
    """Answers for one request: asks queue and workers at most once, and only when it must."""

    def __init__(self, context: ApiContext) -> None:
        self._context = context
        self._workers: Sequence[JsonObject] | None = None
        self._lanes: Mapping[str, LaneStats] | None = None
        #: By execution, for those that were asked for.
        self._limits: dict[str, Limit | None] = {}

    async def of(self, execution: Execution) -> str | None:
        """What the execution waits for; None once it runs or has ended. Raises StorageUnavailable."""
        if execution.status.is_final or execution.status is Status.RUNNING:
            return execution.waiting_for if not execution.status.is_final else None
        if execution.status is not Status.ENQUEUED:
            return execution.waiting_for
        if execution.due_at > self._context.clock():
            what = "its time to start" if execution.retry_of is None else "the delay before its next attempt, until"
            return f"{what} {iso_time(execution.due_at)} UTC"
        # What keeps everybody in the lane waiting is newer than what was noted when this one was last put back.
        return (
            await self._lane_trouble(execution.lane)
            or await self._limit(execution)
            or execution.waiting_for
            or await self._turn(execution.lane)
        )

    async def _lane_trouble(self, name: str) -> str:
        """Why nothing of the lane can be started; "" if something can."""
        if self._context.routing.lane(name) is None:
            return f"the lane {name}, which no enabled runner offers any more; it will be routed anew"
        if self._workers is None:
            self._workers = await live_workers(self._context)
        served = [each for each in (_lane_of(report, name) for report in self._workers) if each is not None]
        if not served:
            return f"a worker that serves the lane {name}: none is running"
        if not any(report.get("places") for report in served):
            reasons = sorted({str(report.get("reason")) for report in served if report.get("reason")})
            return "; ".join(reasons) or f"a place in the lane {name} that can take it: none is available"
        return ""

    async def _limit(self, execution: Execution) -> str:
        """The limit that keeps it waiting; "" if none does."""
        if execution.id not in self._limits:
            try:
                found = await self._context.queue.held_by([execution.id])
            except QueueUnavailable:
                # Told where its turn is.
                return ""
            self._limits[execution.id] = found.get(execution.id)
        limit = self._limits[execution.id]
        if limit is None:
            return ""
        is_task = limit.key == task_key(execution.task_id)
        name = f"task {execution.task_id}" if is_task else f"job {execution.job_id}"
        return f"{name} is at its limit of {limit.capacity}"

    async def _turn(self, name: str) -> str:
        lane = self._context.routing.lane(name)
        capacity = lane.capacity if lane else 0
        if self._lanes is None:
            try:
                self._lanes = await self._context.queue.stats()
            except QueueUnavailable as error:
                return f"the queue, which is out of reach: {error}"
        most, running = self._context.max_running, sum(each.leased for each in self._lanes.values())
        if most is not None and running >= most:
            return f"a free slot: {running} of {most} over all lanes (MAX_RUNNING) are taken"
        stats = self._lanes.get(name, LaneStats())
        if not stats.reachable:
            return f"the queue, in which the lane {name} is out of reach"
        if stats.leased >= capacity:
            return f"a free slot in the lane {name}: {stats.leased} of {capacity} are taken"
        return f"its turn in the lane {name}: {stats.leased} of {capacity} slots are taken"


class SharedReasons:
    """Answers for all who follow: what queue and workers tell is asked for every few seconds, however many they are."""

    def __init__(self, context: ApiContext, *, seconds: float) -> None:
        self._context = context
        self._seconds = seconds
        self._asking = asyncio.Lock()
        self._reasons = WaitingReasons(context)
        self._asked_at: float | None = None

    async def of(self, execution: Execution) -> str | None:
        """What the execution waits for, as it was known `seconds` ago or later. Raises StorageUnavailable."""
        async with self._asking:
            now = asyncio.get_running_loop().time()
            if self._asked_at is None or now - self._asked_at >= self._seconds:
                self._asked_at, self._reasons = now, WaitingReasons(self._context)
            return await self._reasons.of(execution)


def _lane_of(report: JsonObject, name: str) -> JsonObject | None:
    lanes = report.get("lanes")
    lane = lanes.get(name) if isinstance(lanes, Mapping) else None
    return lane if isinstance(lane, Mapping) else None
