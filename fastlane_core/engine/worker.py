"""A worker: a handful of loops under one supervisor, which restarts what crashes and lets go in seconds."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress

import structlog

from fastlane_core.engine.claiming import ClaimLoop
from fastlane_core.engine.context import WorkerContext
from fastlane_core.engine.leases import LeaseKeeper
from fastlane_core.engine.presence import REPORT_SECONDS, WORKERS_SCOPE, Presence
from fastlane_core.engine.reconciling import Reconciler
from fastlane_core.engine.scheduling import Scheduler
from fastlane_core.engine.sweeping import Sweeper
from fastlane_core.errors import FastlaneError, QueueUnavailable, StorageUnavailable
from fastlane_core.models import Event, EventKind, Json

log = structlog.get_logger(__name__)

#: Seconds between two looks whether lanes or hosts have changed, which is reported at once.
_LOOK_SECONDS = 0.5
#: Seconds that letting go may take; then the leases run out by themselves.
_LETTING_GO = 2.0


class Worker:
    """Claims executions and looks after them until it is told to stop."""

    def __init__(self, context: WorkerContext, *, drain_seconds: float = 0.0) -> None:
        """`drain_seconds` is how long runs that would die with this worker are waited for."""
        self._context = context
        self._drain_seconds = drain_seconds
        self._keeper = LeaseKeeper(context)
        self._sweeper = Sweeper(context, self._keeper)
        self._presence = Presence(
            context.storage, context.clock, context.identity, scope=WORKERS_SCOPE, name=context.worker
        )
        duties = context.options.duties
        lanes = [each.name for each in context.routing.lanes()] if duties.jobs or duties.monitor else []
        #: Lanes that it claims from: new executions, or only those whose worker is gone.
        self._lanes = [name for name in lanes if context.options.lanes is None or name in context.options.lanes]

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set, then hand everything over.

        Raises SettingsError if a runner cannot ever work, another worker of this name lives, or this one must not work
        beside the others; StorageUnavailable if that cannot be found out.
        """
        context = self._context
        if not await self._enter(stop):
            return
        runners = context.routing.runners
        lanes = {lane.name: lane for lane in context.routing.lanes()}
        keeping: list[asyncio.Task[None]] = []
        claiming: list[asyncio.Task[None]] = []
        try:
            for runner in runners:
                await runner.open()
            keeping += [
                self._begin("leases", self._keeper.run),
                self._begin("stops", self._keeper.heed_stops),
                self._begin("report", self._report),
            ]
            if context.options.duties.monitor:
                keeping.append(self._begin("reconcile", Reconciler(context, self._keeper).run))
                keeping.append(self._begin("sweep", self._sweeper.run))
            if context.options.duties.jobs:
                claiming.append(self._begin("schedule", Scheduler(context).run))
            for name in self._lanes:
                claim = ClaimLoop(context, lanes[name], context.routing.runner_of(name), self._keeper)
                claiming.append(self._begin(f"claim {name}", claim.run))
            log.info(
                "worker is ready",
                worker=context.worker,
                lanes=self._lanes,
                **({"left_out": left_out} if (left_out := context.options.duties.left_out) else {}),
            )
            await stop.wait()
        finally:
            await self._let_go(keeping, claiming)
            for runner in runners:
                with suppress(FastlaneError, TimeoutError):
                    # Not `wait_for`, which up to Python 3.11 may drop a cancellation that comes with the answer.
                    async with asyncio.timeout(_LETTING_GO):
                        await runner.close()

    async def _enter(self, stop: asyncio.Event) -> bool:
        """Take this worker's name; False if it was told to stop before it had it."""
        entering = asyncio.create_task(self._presence.enter(self._state({}, [])))
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait([entering, stopping], return_when=asyncio.FIRST_COMPLETED)
            if entering.done():
                entering.result()
            return entering.done()
        finally:
            entering.cancel()
            stopping.cancel()
            await asyncio.gather(entering, stopping, return_exceptions=True)

    async def _let_go(self, keeping: list[asyncio.Task[None]], claiming: list[asyncio.Task[None]]) -> None:
        """Take nothing new, hand leases over, and say good-bye."""
        # The loop that renews leases goes on while runs drain.
        await _cancel(claiming)
        attached = frozenset(
            lane.name
            for runner in self._context.routing.runners
            if not runner.capabilities.detached
            for lane in runner.lanes()
        )
        if attached:
            await self._keeper.drain(attached, self._drain_seconds)
        await _cancel(keeping)
        log.info("worker hands over", executions=len(self._keeper))
        try:
            async with asyncio.timeout(_LETTING_GO):
                await self._keeper.hand_over()
                await self._presence.leave()
        except (QueueUnavailable, StorageUnavailable, TimeoutError) as error:
            log.warning("could not hand over; the leases run out by themselves", error=str(error))

    def _begin(self, name: str, loop: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        return asyncio.create_task(self._guarded(name, loop), name=name)

    async def _guarded(self, name: str, loop: Callable[[], Awaitable[None]]) -> None:
        """Run a loop for ever; a crash is reported and the loop begun again."""
        crashes = 0
        while True:
            try:
                await loop()
            except Exception as error:
                crashes += 1
                log.exception("a loop crashed and is begun again", loop=name)
                self._context.report(
                    error,
                    Event(
                        kind=EventKind.LOOP_CRASHED,
                        at=self._context.clock(),
                        worker=self._context.worker,
                        message=f"{name}: {error!r}",
                    ),
                )
                await asyncio.sleep(self._context.options.trouble_backoff.delay(crashes, floor=0.1))

    async def _report(self) -> None:
        """Tell the API processes what this worker is and sees; they have no engine in reach."""
        told: dict[str, Json] = {}
        reached: Mapping[str, frozenset[str]] = {}
        told_at = float("-inf")
        while True:
            before = reached
            lanes, reached = await self._availability()
            self._tell_of_returned_places(before, reached)
            state = self._state(lanes, await self._hosts())
            news = any(state[key] != told.get(key) for key in ("lanes", "hosts"))
            now = asyncio.get_running_loop().time()
            if news or now - told_at >= REPORT_SECONDS:
                with suppress(StorageUnavailable):
                    await self._presence.tell(state)
                    told, told_at = state, now
            await asyncio.sleep(_LOOK_SECONDS)

    def _tell_of_returned_places(self, before: Mapping[str, frozenset[str]], now: Mapping[str, frozenset[str]]) -> None:
        for lane in now.keys() & before.keys():
            for place in now[lane] - before[lane]:
                self._sweeper.place_returned(lane, place)

    async def _availability(self) -> tuple[dict[str, Json], dict[str, frozenset[str]]]:
        """What each lane offers, and the places that can be reached in it, as this worker sees it."""
        context = self._context
        lanes: dict[str, Json] = {}
        reached: dict[str, frozenset[str]] = {}
        for runner in context.routing.runners:
            for lane in runner.lanes():
                availability = await runner.availability(lane.name)
                reason = "; ".join(filter(None, (availability.reason, context.trouble.reason(lane.name))))
                lanes[lane.name] = {
                    "capacity": lane.capacity,
                    "places": dict(availability.places),
                    "reason": reason,
                }
                reached[lane.name] = availability.reached
        return lanes, reached

    async def _hosts(self) -> list[Json]:
        hosts: list[Json] = []
        for runner in self._context.routing.runners:
            found = (await runner.health()).get("hosts", [])
            hosts.extend(found if isinstance(found, list) else [])
        return hosts

    def _state(self, lanes: Mapping[str, Json], hosts: Sequence[Json]) -> dict[str, Json]:
        options = self._context.options
        # Only what it starts new executions in: the others wait for another worker.
        served = self._lanes if options.duties.jobs else []
        return {
            "worker": self._context.worker,
            "lanes": {name: lanes[name] for name in served if name in lanes},
            "hosts": hosts,
            "running": len(self._keeper),
            "concurrency": options.concurrency,
            "leftOut": options.duties.left_out,
            "mended": {str(kind): count for kind, count in self._context.mended.items()},
        }


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
