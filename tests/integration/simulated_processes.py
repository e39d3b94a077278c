"""Processes that can be killed or held up at any call to a server: storage, queue and engine."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from fastlane_core.engine.faultpoints import FaultPoint
from fastlane_core.testing.fake_engine import FakeEngine


class Killed(BaseException):
    """The process is gone."""


class Fate(Enum):
    """What befalls a process."""

    DIES = "dies"
    PAUSES = "pauses"


class Process:
    """Has tasks, which end with it, and makes calls, which wait while it is held up."""

    def __init__(self, name: str, traffic: Traffic) -> None:
        self.name = name
        self.tasks: set[asyncio.Task[Any]] = set()
        self.alive = True
        self.paused = False
        self._traffic = traffic
        self._fate = Fate.DIES
        self._calls_left: int | None = None
        self._point: FaultPoint | None = None

    def doom(self, fate: Fate, where: int | FaultPoint | None) -> None:
        """Have it die or pause after so many further calls, or at a fault point; None for never."""
        self._fate = fate
        self._calls_left = where if isinstance(where, int) else None
        self._point = where if isinstance(where, FaultPoint) else None

    def reach(self, point: FaultPoint) -> None:
        """Passes a fault point."""
        if not self.alive:
            raise Killed
        if point is self._point:
            self._meet_fate()
            if not self.alive:
                raise Killed

    def called(self) -> None:
        """A server has done what it asked for; it may not live to hear of it."""
        if self._calls_left is not None:
            self._calls_left -= 1
            if self._calls_left <= 0:
                self._meet_fate()

    def kill(self) -> None:
        """Nothing that it still does has an effect."""
        self.alive = False
        self._traffic.hang_up(self)
        for task in list(self.tasks):
            task.cancel()

    def _meet_fate(self) -> None:
        fate = self._fate
        self.doom(fate, None)
        if fate is Fate.DIES:
            self.kill()
        else:
            self.paused = True


@dataclass(eq=False, slots=True)
class Call:
    """Something that a process asks of a server."""

    process: Process
    server: str
    method: str
    args: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    answer: asyncio.Future[Any] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Traffic:
    """All calls on their way: each is one step, and which comes next is drawn."""

    def __init__(self, perform: Callable[[Call], Any], chance: random.Random) -> None:
        self._perform = perform
        self._chance = chance
        self._waiting: list[Call] = []
        self.count = 0

    async def ask(self, process: Process, server: str, method: str, *args: Any, **options: Any) -> Any:
        """The answer, once it is this call's turn."""
        if not process.alive:
            raise Killed
        call = Call(process, server, method, args, options)
        self._waiting.append(call)
        return await call.answer

    def step(self) -> bool:
        """Let one call happen; whether there was one."""
        self._waiting = [each for each in self._waiting if not each.answer.done()]
        ready = [each for each in self._waiting if not each.process.paused]
        if not ready:
            return False
        call = self._chance.choice(ready)
        self._waiting.remove(call)
        self.count += 1
        try:
            answer = self._perform(call)
        except AssertionError:
            raise
        except Exception as error:
            call.answer.set_exception(error)
        else:
            call.answer.set_result(answer)
        call.process.called()
        return True

    def hang_up(self, process: Process) -> None:
        """Its calls that have not happened never do."""
        for call in self._waiting:
            if call.process is process and not call.answer.done():
                call.answer.set_exception(Killed())


class Remote:
    """A storage or a queue, as one process reaches it."""

    counts_overall = True

    def __init__(self, traffic: Traffic, process: Process, server: str) -> None:
        self._traffic = traffic
        self._process = process
        self._server = server

    async def wait(self, lanes: object, timeout: float) -> None:
        """Every wake-up is lost."""
        await asyncio.sleep(timeout)

    def __getattr__(self, method: str) -> Any:
        async def ask(*args: Any, **options: Any) -> Any:
            return await self._traffic.ask(self._process, self._server, method, *args, **options)

        return ask


class RemoteEngine:
    """The engine, as one process reaches it."""

    def __init__(self, traffic: Traffic, process: Process, engine: FakeEngine) -> None:
        self._traffic = traffic
        self._process = process
        self._engine = engine

    async def reach(self) -> None:
        """Every call begins with it."""
        await self._traffic.ask(self._process, "engine", "reach")
        await self._engine.reach()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)
