"""Threads for calls that block, asked from an event loop.

Unlike those of `concurrent.futures` they are daemons: a call that hangs on a dead engine must not keep a worker that
was asked to stop from ending. And a call needs one future instead of two, which tell each other.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


class DaemonThreads:
    """At most `most` threads, made when they are needed; what they cannot take yet waits in order."""

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._closed = False

    def run(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Do `work` in a thread; call it from a running event loop. RuntimeError once closed.

        Cancelling the future before the work began spares it.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def run() -> None:
            if future.cancelled():
                return
            try:
                result = work()
            except BaseException as error:
                _tell(loop, _fail, future, error)
            else:
                _tell(loop, _succeed, future, result)

        with self._lock:
            if self._closed:
                raise RuntimeError(f"the threads {self._name} are closed")
            self._work.put(run)
            if self._idle:
                self._idle -= 1
            elif len(self._threads) < self._most:
                thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
                self._threads.append(thread)
                thread.start()
        return future

    def close(self) -> None:
        """Take nothing more; threads end once they have done what was submitted."""
        with self._lock:
            self._closed = True
            for _ in self._threads:
                self._work.put(None)

    def join(self) -> None:
        """Return when all have ended, once it is closed. Blocks."""
        for thread in self._threads:
            thread.join()

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            work()
            with self._lock:
                self._idle += 1


def _tell(loop: asyncio.AbstractEventLoop, settle: Callable[..., None], *arguments: object) -> None:
    with suppress(RuntimeError):  # A loop that was closed has nobody waiting.
        loop.call_soon_threadsafe(settle, *arguments)


def _succeed(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[T], error: BaseException) -> None:
    if not future.done():
        # The one that futures refuse.
        future.set_exception(RuntimeError(repr(error)) if isinstance(error, StopIteration) else error)
