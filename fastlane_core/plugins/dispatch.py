"""Calling the awaited hooks: one place, so that no observer can slow or fail a job, whatever it does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import structlog

from fastlane_core.hookspecs import Finding, Level
from fastlane_core.models import Event
from fastlane_core.plugins.records import said

log = structlog.get_logger(__name__)

#: Events that may wait for one observer; beyond that its events are dropped.
_MOST_WAITING = 10_000
#: Seconds that an observer may take over one event.
_EVENT_TIMEOUT = 10.0
#: One warning per so many dropped events, after the first.
_DROPS_PER_WARNING = 1000


class Observer:
    """One plugin's `fastlane_event`, fed from a bounded queue by a task of its own: others never wait for it."""

    def __init__(
        self,
        plugin: str,
        observe: Callable[[Event], Awaitable[None]],
        *,
        most_waiting: int = _MOST_WAITING,
        timeout: float = _EVENT_TIMEOUT,
    ) -> None:
        """`timeout` in seconds bounds one call of `observe`."""
        self.plugin = plugin
        #: Events that were not handed over because too many waited.
        self.dropped = 0
        self._observe = observe
        self._timeout = timeout
        self._events: asyncio.Queue[Event] = asyncio.Queue(most_waiting)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to hand events over."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"events of {self.plugin}")

    def emit(self, event: Event) -> None:
        """Queue the event, or drop it and count; returns at once. To be called from the event loop's thread."""
        try:
            self._events.put_nowait(event)
        except asyncio.QueueFull:
            self.dropped += 1
            if self.dropped % _DROPS_PER_WARNING == 1:
                log.warning("plugin too slow, events dropped", plugin=self.plugin, dropped=self.dropped)

    async def stop(self, timeout: float) -> None:
        """Hand over what waits, for at most `timeout` seconds, then end."""
        if self._task is None:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._events.join()
        if left := self._events.qsize():
            log.warning("plugin too slow, events dropped at the end", plugin=self.plugin, dropped=left)
        self._task.cancel()
        await asyncio.wait({self._task}, timeout=timeout)
        self._task = None

    async def _run(self) -> None:
        while True:
            event = await self._events.get()
            try:
                await call_isolated(self.plugin, "fastlane_event", self._observe(event), timeout=self._timeout)
            finally:
                self._events.task_done()


async def call_isolated(plugin: str, hook: str, call: Awaitable[None], *, timeout: float) -> Exception | None:
    """Await one call of a hook for at most `timeout` seconds; what it raises is logged, and returned."""
    limit = asyncio.timeout(timeout)
    try:
        async with limit:
            await call
    except Exception as error:
        if limit.expired():
            log.warning("hook of a plugin took too long", plugin=plugin, hook=hook, seconds=timeout)
        else:
            log.warning("hook of a plugin failed", plugin=plugin, hook=hook, exc_info=True)
        return error
    return None


async def findings_of(plugin: str, call: Awaitable[Sequence[Finding]], *, timeout: float) -> Sequence[Finding]:
    """What a plugin's checks find within `timeout` seconds; checks that fail are a finding themselves."""

    def problem(message: str) -> Sequence[Finding]:
        advice = "Its author may want to know; the rest of this report is not touched by it."
        return [Finding(level=Level.PROBLEM, subject=f"checks of {plugin}", message=message, advice=advice)]

    limit = asyncio.timeout(timeout)
    try:
        async with limit:
            found = list(await call)
    except Exception as error:
        return problem(f"took longer than {timeout:g} s" if limit.expired() else f"failed: {said(error)}")
    if not all(isinstance(each, Finding) for each in found):
        return problem("have to return findings, but returned something else")
    return found


async def stop_observers(observers: Sequence[Observer], *, timeout: float) -> None:
    """Stop all at once, each within `timeout` seconds."""
    await asyncio.gather(*(observer.stop(timeout) for observer in observers))
