"""Awaited hooks: whatever an observer does, nobody waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import structlog

from fastlane_core.errors import PluginError
from fastlane_core.hookspecs import PluginContext, hookimpl
from fastlane_core.models import Event, EventKind
from fastlane_core.plugins import PluginInfo, PluginRegistry
from fastlane_core.plugins.dispatch import Observer, call_isolated
from fastlane_core.settings import CORE_SECTIONS, Settings

#: Seconds after which a test gives up waiting for something that should happen at once.
PATIENCE = 20.0


def event(number: int = 0) -> Event:
    return Event(kind=EventKind.EXECUTION_CHANGED, at=float(number))


def context() -> PluginContext:
    settings = Settings.load(CORE_SECTIONS, path=None, environment={})
    return PluginContext(settings=settings, deployment_id="d", api_bind=None, clock=lambda: 0.0)


class Watcher:
    """A plugin that notes the events it sees."""

    def __init__(self, observe: Callable[[Event], Awaitable[None]] | None = None) -> None:
        self.seen: list[float] = []
        self.calls: list[str] = []
        self._observe = observe

    @hookimpl
    async def fastlane_startup(self) -> None:
        self.calls.append("startup")

    @hookimpl
    async def fastlane_event(self, event: Event) -> None:
        if self._observe:
            await self._observe(event)
        self.seen.append(event.at)

    @hookimpl
    async def fastlane_shutdown(self) -> None:
        self.calls.append("shutdown")


def registry_of(*, required: tuple[str, ...] = (), **plugins: object) -> PluginRegistry:
    registry = PluginRegistry(required=required)
    for name, plugin in plugins.items():
        registry.register(plugin, PluginInfo(name=name, module="test"))
    return registry


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0)


async def test_every_observer_sees_every_event_in_order() -> None:
    one, other = Watcher(), Watcher()
    registry = registry_of(one=one, other=other)
    await registry.startup(context())

    for number in range(100):
        registry.emit(event(number))
    await registry.shutdown()

    assert one.seen == other.seen == [float(number) for number in range(100)]
    assert one.calls == ["startup", "shutdown"]


async def test_a_failing_observer_is_logged_by_name_and_goes_on_observing() -> None:
    async def fail(event: Event) -> None:
        if event.at == 1.0:
            raise RuntimeError("boom")

    failing, fine = Watcher(fail), Watcher()
    registry = registry_of(failing=failing, fine=fine)
    await registry.startup(context())

    with structlog.testing.capture_logs() as logs:
        for number in range(3):
            registry.emit(event(number))
        await registry.shutdown()

    assert fine.seen == [0.0, 1.0, 2.0]
    assert failing.seen == [0.0, 2.0]
    assert [(line["plugin"], line["hook"]) for line in logs] == [("failing", "fastlane_event")]


async def test_an_observer_that_hangs_delays_no_other() -> None:
    never = asyncio.Event()

    async def hang(event: Event) -> None:
        await never.wait()

    hanging, fine = Watcher(hang), Watcher()
    registry = registry_of(hanging=hanging, fine=fine)
    await registry.startup(context())

    for number in range(10):
        registry.emit(event(number))
    await until(lambda: len(fine.seen) == 10)

    assert hanging.seen == []
    never.set()
    await registry.shutdown()
    assert len(hanging.seen) == 10


async def test_a_full_queue_drops_events_with_a_counted_warning_and_emitting_returns_at_once() -> None:
    never = asyncio.Event()
    observer = Observer("slow", lambda event: _wait(never), most_waiting=5)
    observer.start()

    with structlog.testing.capture_logs() as logs:
        for number in range(1500):
            observer.emit(event(number))

    assert observer.dropped == 1495
    assert [line["dropped"] for line in logs] == [1, 1001]
    assert {line["plugin"] for line in logs} == {"slow"}
    await observer.stop(0.01)


async def _wait(forever: asyncio.Event) -> None:
    await forever.wait()


async def test_an_observer_that_takes_too_long_loses_that_event_only() -> None:
    seen: list[float] = []

    async def slow_at_first(event: Event) -> None:
        if event.at == 0.0:
            await asyncio.Event().wait()
        seen.append(event.at)

    observer = Observer("slow", slow_at_first, timeout=0.01)
    observer.start()
    with structlog.testing.capture_logs() as logs:
        observer.emit(event(0))
        observer.emit(event(1))
        await until(lambda: seen == [1.0])

    assert [line["event"] for line in logs] == ["hook of a plugin took too long"]
    await observer.stop(PATIENCE)


async def test_an_observer_that_hangs_does_not_hold_up_the_end() -> None:
    observer = Observer("stuck", lambda event: _wait(asyncio.Event()))
    observer.start()
    for number in range(3):
        observer.emit(event(number))

    with structlog.testing.capture_logs() as logs:
        async with asyncio.timeout(PATIENCE):
            await observer.stop(0.01)

    assert [line["dropped"] for line in logs] == [2]


async def test_events_from_before_the_start_are_handed_over_after_it() -> None:
    watcher = Watcher()
    registry = registry_of(watcher=watcher)

    registry.emit(event(7))
    await registry.startup(context())
    await registry.shutdown()

    assert watcher.seen == [7.0]


async def test_a_plugin_that_does_not_start_is_logged_and_the_others_start() -> None:
    class Broken:
        @hookimpl
        async def fastlane_startup(self, context: PluginContext) -> None:
            raise RuntimeError(f"boom {context.deployment_id}")

    fine = Watcher()
    registry = registry_of(broken=Broken(), fine=fine)

    with structlog.testing.capture_logs() as logs:
        await registry.startup(context())
    await registry.shutdown()

    assert fine.calls == ["startup", "shutdown"]
    assert [(line["plugin"], line["log_level"]) for line in logs] == [("broken", "warning")]


async def test_a_required_plugin_that_does_not_start_is_fatal() -> None:
    class Broken:
        @hookimpl
        async def fastlane_startup(self) -> None:
            raise RuntimeError("boom")

    with pytest.raises(PluginError, match=r"required plugin broken \(test\) did not start: RuntimeError: boom"):
        await registry_of(required=("broken",), broken=Broken()).startup(context())


async def test_a_hook_that_outlasts_its_time_is_cancelled() -> None:
    cancelled = asyncio.Event()

    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    error = await call_isolated("slow", "fastlane_shutdown", slow(), timeout=0.01)

    assert isinstance(error, TimeoutError)
    assert cancelled.is_set()


async def test_being_cancelled_from_outside_is_not_taken_for_a_failure() -> None:
    calling = asyncio.create_task(call_isolated("slow", "hook", _wait(asyncio.Event()), timeout=PATIENCE))
    await asyncio.sleep(0)

    calling.cancel()

    with pytest.raises(asyncio.CancelledError):
        await calling


async def test_without_observers_emitting_does_nothing() -> None:
    registry = PluginRegistry()
    await registry.startup(context())
    registry.emit(event())
    await registry.shutdown()
