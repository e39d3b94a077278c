"""Calls that find all threads of an engine busy."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import cast

import pytest

from fastlane_core.errors import EngineUnavailable
from fastlane_docker.engines import engine as engines
from fastlane_docker.engines.addresses import parse_address
from fastlane_docker.engines.client import Client
from fastlane_docker.engines.engine import Engine, Kind

SECONDS = 1.0


class Busy:
    """An engine that nobody speaks to, with a thread for each kind of call, and what was heard of it."""

    def __init__(self) -> None:
        self.heard: list[tuple[Kind, bool]] = []
        self.engine = Engine(parse_address("unused"), SECONDS, lambda kind, why: self.heard.append((kind, not why)))
        self._free = threading.Event()

    def hold(self, client: Client) -> None:
        self._free.wait()

    def free(self) -> None:
        self._free.set()


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Busy]:
    monkeypatch.setattr(engines, "_CALLS", 1)
    monkeypatch.setattr(engines, "_STOPS", 1)
    monkeypatch.setattr(Engine, "client", lambda engine: cast(Client, None))
    busy = Busy()
    yield busy
    busy.free()
    busy.engine.close()


async def test_stops_that_wait_for_their_turn_are_no_trouble_of_the_engine(busy: Busy) -> None:
    long = asyncio.create_task(busy.engine.stop_call("stop", busy.hold, 600.0))
    waiting = [asyncio.create_task(busy.engine.stop_call("stop", lambda client: None, 0.0)) for _ in range(20)]
    cancelled = asyncio.create_task(busy.engine.stop_call("stop", lambda client: None, 0.0))
    await asyncio.sleep(2 * SECONDS)
    cancelled.cancel()
    assert not any(each.done() for each in (long, *waiting))

    busy.free()

    await asyncio.gather(long, *waiting)
    assert busy.heard == [(Kind.OTHER, True)] * 21


async def test_a_stop_that_hangs_once_it_has_begun_is_trouble(busy: Busy) -> None:
    with pytest.raises(EngineUnavailable, match="no answer within 1 s"):
        await busy.engine.stop_call("stop", busy.hold, 0.0)
    assert busy.heard == [(Kind.OTHER, False)]


async def test_a_call_that_finds_no_thread_in_time_fails_and_is_no_trouble_of_the_engine(busy: Busy) -> None:
    hanging = asyncio.create_task(busy.engine.call("hang", busy.hold))
    await asyncio.sleep(0)

    with pytest.raises(EngineUnavailable, match="no thread was free"):
        await busy.engine.call("list", lambda client: None)

    with pytest.raises(EngineUnavailable, match="no answer"):
        await hanging
    assert busy.heard == [(Kind.OTHER, False)]
