"""Time-outs that share one timer."""

from __future__ import annotations

import asyncio

import pytest

from fastlane_core.coarse_timeout import coarse_timeout

FOR_EVER = 3_600.0


async def test_what_ends_in_time_is_left_alone() -> None:
    with coarse_timeout(FOR_EVER):
        await asyncio.sleep(0)
    with coarse_timeout(None):
        await asyncio.sleep(0)


async def test_what_takes_too_long_is_cancelled_and_its_task_goes_on() -> None:
    with pytest.raises(TimeoutError), coarse_timeout(0.0):
        await asyncio.sleep(FOR_EVER)

    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)


async def test_the_inner_one_of_two_ends_what_is_inside_it() -> None:
    with coarse_timeout(FOR_EVER):
        with pytest.raises(TimeoutError), coarse_timeout(0.0):
            await asyncio.sleep(FOR_EVER)
        await asyncio.sleep(0)


async def test_the_outer_one_of_two_passes_through_the_inner() -> None:
    async def inner() -> None:
        with coarse_timeout(FOR_EVER):
            await asyncio.sleep(FOR_EVER)

    async def outer() -> None:
        with coarse_timeout(0.0):
            try:
                await inner()
            except TimeoutError:
                pytest.fail("the inner one took it for its own")

    with pytest.raises(TimeoutError):
        await outer()


async def test_a_cancellation_from_elsewhere_stays_one() -> None:
    async def late() -> None:
        with coarse_timeout(FOR_EVER):
            await asyncio.sleep(FOR_EVER)

    task = asyncio.create_task(late())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])

    assert task.cancelled()


async def test_a_cancellation_that_comes_with_the_time_out_stays_one() -> None:
    async def late() -> None:
        with coarse_timeout(0.0):
            try:
                await asyncio.sleep(FOR_EVER)
            except asyncio.CancelledError:
                task.cancel()
                raise

    task = asyncio.create_task(late())
    await asyncio.wait([task])

    assert task.cancelled()


async def test_an_error_that_comes_of_it_is_not_hidden() -> None:
    async def late() -> None:
        with coarse_timeout(0.0):
            try:
                await asyncio.sleep(FOR_EVER)
            except asyncio.CancelledError:
                raise OSError("gone") from None

    with pytest.raises(OSError, match="gone"):
        await late()


async def test_nothing_ticks_while_nothing_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    timers: list[object] = []
    call_later = loop.call_later

    def counted(delay: float, callback: object, *arguments: object) -> asyncio.TimerHandle:
        timers.append(callback)
        return call_later(delay, callback, *arguments)  # type: ignore[arg-type]

    for _ in range(100):
        with coarse_timeout(FOR_EVER):
            await asyncio.sleep(0)
    monkeypatch.setattr(loop, "call_later", counted)
    ended = asyncio.Event()
    call_later(0.3, ended.set)
    await ended.wait()

    assert timers == []
