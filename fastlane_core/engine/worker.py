"""A worker: a handful of loops under one supervisor, which restarts what crashes and lets go in seconds."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

import structlog

from fastlane_core import __version__
from fastlane_core.engine.claiming import ClaimLoop
from fastlane_core.engine.context import WorkerContext
from fastlane_core.engine.leases import LeaseKeeper
from fastlane_core.engine.reconciling import Reconciler
from fastlane_core.errors import FastlaneError, QueueUnavailable, StorageUnavailable
from fastlane_core.models import Event, EventKind, Json

log = structlog.get_logger(__name__)

#: Scope of the shared state in which workers report.
WORKERS_SCOPE = "workers"
#: Seconds between two reports without news, and after which a worker that did not report is taken for dead.
REPORT_SECONDS = 5.0
#: Seconds between two looks whether lanes or hosts have changed, which is reported at once.
_LOOK_SECONDS = 0.5
DEAD_AFTER_SECONDS = 60.0
#: Seconds that letting go may take; then the leases run out by themselves.
_LETTING_GO = 2.0


class Worker:
    """Claims executions and looks after them until it is told to stop."""

    def __init__(self, context: WorkerContext, *, drain_seconds: float = 0.0) -> None:
        """`drain_seconds` is how long runs that would die with this worker are waited for."""
        self._context = context
        self._drain_seconds = drain_seconds
        self._keeper = LeaseKeeper(context)
        self._reconciler = Reconciler(context, self._keeper)

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set, then hand everything over. Raises SettingsError if a runner cannot ever work."""
        context = self._context
        runners = context.routing.runners
        for runner in runners:
            await runner.open()
        loops = [
            self._guarded("leases", self._keeper.run),
            self._guarded("reconcile", self._reconciler.run),
            self._guarded("report", self._report),
        ]
        for lane in context.routing.lanes():
            claim = ClaimLoop(context, lane, context.routing.runner_of(lane.name), self._keeper)
            loops.append(self._guarded(f"claim {lane.name}", claim.run))
        tasks = [asyncio.create_task(loop) for loop in loops]
        log.info("worker is ready", worker=context.worker, lanes=[lane.name for lane in context.routing.lanes()])
        try:
            await stop.wait()
        finally:
            await self._let_go(tasks)
            for runner in runners:
                with suppress(FastlaneError, TimeoutError):
                    # Not `wait_for`, which up to Python 3.11 may drop a cancellation that comes with the answer.
                    async with asyncio.timeout(_LETTING_GO):
                        await runner.close()

    async def _let_go(self, tasks: list[asyncio.Task[None]]) -> None:
        """Take nothing new, hand leases over, and say good-bye."""
        # The loop that renews leases goes on while runs drain; the claim loops come after the three others.
        keeping, claiming = tasks[:3], tasks[3:]
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
                await self._context.storage.delete_state(WORKERS_SCOPE, self._context.worker)
        except (QueueUnavailable, StorageUnavailable, TimeoutError) as error:
            log.warning("could not hand over; the leases run out by themselves", error=str(error))

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
        seen: Json = None
        told_at = float("-inf")
        while True:
            state = await self._state()
            self._tell_of_returned_places(seen, state["lanes"])
            seen = state["lanes"]
            news = any(state[key] != told.get(key) for key in ("lanes", "hosts"))
            now = asyncio.get_running_loop().time()
            if news or now - told_at >= REPORT_SECONDS:
                with suppress(StorageUnavailable):
                    await self._context.storage.put_state(WORKERS_SCOPE, self._context.worker, state, revision=None)
                    await self._forget_the_dead()
                    told, told_at = state, now
            await asyncio.sleep(_LOOK_SECONDS)

    def _tell_of_returned_places(self, before: Json, now: Json) -> None:
        if not (isinstance(before, Mapping) and isinstance(now, Mapping)):
            return
        for lane, each in now.items():
            for place in _places(each) - _places(before.get(lane)):
                self._reconciler.place_returned(lane, place)

    async def _state(self) -> dict[str, Json]:
        context = self._context
        lanes: dict[str, Json] = {}
        hosts: list[Json] = []
        for runner in context.routing.runners:
            for lane in runner.lanes():
                availability = await runner.availability(lane.name)
                reason = "; ".join(filter(None, (availability.reason, context.trouble.reason(lane.name))))
                lanes[lane.name] = {
                    "capacity": lane.capacity,
                    "places": dict(availability.places),
                    "reason": reason,
                }
            found = (await runner.health()).get("hosts", [])
            hosts.extend(found if isinstance(found, list) else [])
        return {
            "worker": context.worker,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "version": __version__,
            "at": context.clock(),
            "lanes": lanes,
            "hosts": hosts,
            "running": len(self._keeper),
        }

    async def _forget_the_dead(self) -> None:
        now = self._context.clock()
        for worker, value in (await self._context.storage.list_state(WORKERS_SCOPE)).items():
            at = value.value.get("at")
            if isinstance(at, (int, float)) and now - at > DEAD_AFTER_SECONDS:
                await self._context.storage.delete_state(WORKERS_SCOPE, worker)


def _places(lane: Json) -> frozenset[str]:
    places = lane.get("places") if isinstance(lane, Mapping) else None
    return frozenset(places) if isinstance(places, Mapping) else frozenset()


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
