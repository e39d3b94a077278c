"""Taking work: one loop per lane, so that a full or dead lane never delays another."""

from __future__ import annotations

import asyncio

import structlog

from fastlane_core.contracts.runner import Lane, Runner
from fastlane_core.engine.context import WorkerContext
from fastlane_core.engine.leases import LeaseKeeper
from fastlane_core.errors import QueueUnavailable

log = structlog.get_logger(__name__)


class ClaimLoop:
    """Claims what waits in one lane, as far as its places and this worker have room."""

    def __init__(self, context: WorkerContext, lane: Lane, runner: Runner, keeper: LeaseKeeper) -> None:
        self._context = context
        self._lane = lane
        self._runner = runner
        self._keeper = keeper
        #: Lanes whose changes may let it claim more: all, where they share what may run.
        self._awaited = [lane.name]
        if context.options.max_running is not None:
            self._awaited = [each.name for each in context.routing.lanes()]

    async def run(self) -> None:
        """Claim until cancelled."""
        troubles = 0
        while True:
            try:
                pause = await self._claim()
                troubles = 0
            except QueueUnavailable as error:
                troubles += 1
                log.warning("the queue is out of reach; claiming nothing", lane=self._lane.name, error=str(error))
                await asyncio.sleep(self._context.options.trouble_backoff.delay(troubles, floor=0.1))
                continue
            if pause is not None:
                await self._context.queue.wait(self._awaited, pause)

    async def _claim(self) -> float | None:
        """Claim once; the seconds to wait for more, or None to go on at once."""
        await self._keeper.wait_for_free(self._lane.name)
        capacity, pause = await self._capacity()
        limit = self._keeper.free(self._lane.name)
        leases = await self._context.queue.claim(
            self._lane.name,
            worker=self._context.worker,
            capacity=capacity,
            limit=limit,
            lease_seconds=self._context.options.lease_seconds,
            overall=self._context.options.max_running,
        )
        self._keeper.keep(leases)
        if len(leases) == limit:
            # A lane that may have more to give is asked again once others had their turn at the loop.
            await asyncio.sleep(0)
            return None
        return pause

    async def _capacity(self) -> tuple[int, float]:
        """Leases that the lane may hold now, and how long to wait when that gives nothing."""
        name, context = self._lane.name, self._context
        if not context.options.duties.jobs:
            # Executions whose worker died are adopted all the same: their slots are taken already.
            return 0, context.options.poll_seconds
        places = (await self._runner.availability(name)).places
        now = context.clock()
        usable = context.trouble.usable(name, places, now=now)
        pause = context.options.poll_seconds
        if len(usable) == len(places):
            return min(self._lane.capacity, sum(places.values())), pause
        wait = context.trouble.pause(name, places, now=now)
        if not usable:
            return 0, min(pause, max(wait, 0.01))
        loads = await context.queue.loads(name)
        stuck = sum(load for place, load in loads.items() if place not in usable)
        return min(self._lane.capacity, stuck + sum(places[place] for place in usable)), pause
