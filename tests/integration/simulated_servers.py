"""Real storages and queues for a simulation: reached one call at a time, their clocks set by it."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from fastlane_core.builtin.sqlite.queue import SqliteQueue
from fastlane_core.builtin.sqlite.storage import SqliteStorage
from fastlane_core.contracts.queue import Queue
from fastlane_core.contracts.storage import Storage

T = TypeVar("T")
#: Seconds after which a server is given up; reached only when something is broken.
_PATIENCE = 120.0


class RealTime:
    """An event loop of a thread's own, where drivers of servers have the time that they know."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Its result, waited for."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_PATIENCE)

    def close(self) -> None:
        """End the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_PATIENCE)
        self._loop.close()


class Servers(ABC):
    """One storage and one queue, emptied for each simulation."""

    storage: Storage
    queue: Queue

    @abstractmethod
    async def begin(self, clock: Callable[[], float]) -> None:
        """Make both anew, empty; the queue goes by the clock."""

    @abstractmethod
    async def before_call(self) -> None:
        """Have the queue's clock show what the simulation's does."""

    @abstractmethod
    async def lose_queue(self) -> None:
        """Let the queue lose its data."""

    @abstractmethod
    async def end(self) -> None:
        """Close both."""


class SqliteServers(Servers):
    """Two files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def begin(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._own = Path(tempfile.mkdtemp(dir=self._folder))
        self.storage = SqliteStorage(self._own / "storage.db", readers=1)
        await self.storage.open()
        await self._open_queue()

    async def before_call(self) -> None:
        """Its clock is the simulation's."""

    async def lose_queue(self) -> None:
        await self.queue.close()
        for file in self._own.glob("queue.db*"):
            file.unlink()
        await self._open_queue()

    async def end(self) -> None:
        await self.queue.close()
        await self.storage.close()

    async def _open_queue(self) -> None:
        self.queue = SqliteQueue(self._own / "queue.db", clock=self._clock, readers=1)
        await self.queue.open()
