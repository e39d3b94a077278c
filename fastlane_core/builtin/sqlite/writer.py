"""The thread that writes: what waits is committed together, so that many callers share one wait for the disk."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Generic, TypeVar

import structlog

from fastlane_core.builtin.sqlite.connection import begin, open_writer, roll_back
from fastlane_core.builtin.sqlite.trouble import DatabaseUnavailable, explain, is_outage

log = structlog.get_logger(__name__)

T = TypeVar("T")

#: Writes in one commit, and writes that may wait.
_BATCH = 500
_MAX_WAITING = 20_000
#: Seconds that a deferred write waits for another commit to join.
_DEFER_SECONDS = 0.02
#: Turns of the event loop that a write waits for others to join it, and seconds after which it waits for no other. What
#: waits for the disk waits for nothing else.
_TURNS, _GATHER_SECONDS = 3, 0.001


class Writer:
    """Runs write operations on one connection, in order.

    Operations that wait are committed in one transaction. One that raises fails only its own caller, and leaves
    nothing behind; its function may then be called a second time, and so must not change anything but the database.
    """

    def __init__(self, path: Path, busy_seconds: float) -> None:
        """Raises DatabaseUnavailable."""
        self._path = path
        self._busy_seconds = busy_seconds
        self._connection = open_writer(path, busy_seconds)
        self._file = _identity(path)
        self._synchronous = ""
        self._waiting: deque[_Write] = deque()
        self._deferred: deque[_Write] = deque()
        #: Event loops with writes of which the thread is told in a moment.
        self._gathering: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="fastlane-sqlite-writer", daemon=True)
        self._thread.start()

    def write(self, operation: Callable[[sqlite3.Connection], T], *, durable: bool = True) -> asyncio.Future[T]:
        """Run the operation; the result comes when it is on disk. Call it from a running event loop.

        One that need not be `durable` is out of the process when its result comes, but a machine that stops may lose
        it; never one without everything that was written later.
        Raises DatabaseUnavailable, here or through the future.
        """
        write = _AwaitedWrite(operation, durable=durable)
        self._add(self._waiting, write)
        if durable:
            self._notify()
        elif write.loop not in self._gathering:
            self._gathering.add(write.loop)
            self._gather(write.loop, _TURNS, time.monotonic() + _GATHER_SECONDS)
        return write.future

    def defer(self, operation: Callable[[sqlite3.Connection], None]) -> None:
        """Run the operation soon, with another one's commit if possible; a failure is only logged.

        Raises DatabaseUnavailable when too much waits.
        """
        self._add(self._deferred, _DeferredWrite(operation))
        self._notify()

    def close(self) -> None:
        """Write what waits, then end the thread. Blocks."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _add(self, queue: deque[_Write], write: _Write) -> None:
        with self._changed:
            if self._closing:
                raise DatabaseUnavailable(f"the SQLite database {self._path} is closed")
            if len(queue) >= _MAX_WAITING:
                raise DatabaseUnavailable(
                    f"{len(queue)} writes wait for the SQLite database {self._path}: its disk is too slow; try later"
                )
            queue.append(write)

    def _gather(self, loop: asyncio.AbstractEventLoop, turns: int, until: float) -> None:
        """Wake the thread once others had their turn to write: each waking costs as much as a small write."""
        if turns and time.monotonic() < until:
            loop.call_soon(self._gather, loop, turns - 1, until)
            return
        self._gathering.discard(loop)
        self._notify()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify()

    def _run(self) -> None:
        try:
            while batch := self._next_batch():
                self._commit([write for write in batch if not write.abandoned])
        finally:
            self._connection.close()

    def _next_batch(self) -> Sequence[_Write]:
        """The writes of the next commit; empty when closing and nothing waits."""
        with self._changed:
            while not self._waiting and not self._closing:
                in_time = self._changed.wait(_DEFER_SECONDS if self._deferred else None)
                if not in_time:
                    break
            batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
            batch.extend(self._deferred)
            self._deferred.clear()
            return batch

    def _commit(self, batch: Sequence[_Write]) -> None:
        try:
            if not self._transact(batch, savepoints=False):
                self._transact(batch, savepoints=True)
        except Exception as error:
            for write in batch:
                write.error = error
        finally:
            roll_back(self._connection)
        loops: dict[asyncio.AbstractEventLoop | None, list[_Write]] = {}
        for write in batch:
            write.error = self._for_caller(write.error)
            loops.setdefault(write.loop, []).append(write)
        for loop, writes in loops.items():
            if loop is None:
                _settle(writes)
            else:
                with suppress(RuntimeError):  # A loop that was closed has nobody waiting.
                    loop.call_soon_threadsafe(_settle, writes)

    def _transact(self, batch: Sequence[_Write], *, savepoints: bool) -> bool:
        """Run and commit the batch; False, with nothing done, when a write failed half-way and savepoints are needed.

        Savepoints cost two statements a write, and a write that fails has hardly ever changed anything before.
        """
        connection = self._connection
        if _identity(self._path) != self._file:
            raise DatabaseUnavailable(
                f"the SQLite database {self._path} was removed or replaced while it was in use: restart Fastlane"
            )
        # With a write-ahead log, waiting for the disk once covers everything that was committed before.
        synchronous = "FULL" if any(write.durable for write in batch) else "NORMAL"
        if synchronous != self._synchronous:
            connection.execute(f"PRAGMA synchronous = {synchronous}")
            self._synchronous = synchronous
        begin(connection, self._busy_seconds)
        for write in batch:
            changes = connection.total_changes
            if savepoints:
                connection.execute("SAVEPOINT one_write")
            try:
                write.error = None
                write.run(connection)
            except Exception as error:
                if not connection.in_transaction:
                    raise
                if savepoints:
                    connection.execute("ROLLBACK TO one_write")
                elif connection.total_changes != changes:
                    connection.execute("ROLLBACK")
                    return False
                write.error = error
            if savepoints:
                connection.execute("RELEASE one_write")
        connection.execute("COMMIT")
        return True

    def _for_caller(self, error: Exception | None) -> Exception | None:
        # A new exception for each caller: one that is raised in several tasks mixes up their tracebacks.
        if isinstance(error, DatabaseUnavailable):
            return DatabaseUnavailable(*error.args)
        if isinstance(error, sqlite3.Error) and is_outage(error):
            return DatabaseUnavailable(explain(error, self._path))
        return error


class _Write:
    """An operation on its way through the thread."""

    loop: asyncio.AbstractEventLoop | None = None
    error: Exception | None = None
    durable = False

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits for it any more."""
        return False

    def run(self, connection: sqlite3.Connection) -> None:
        raise NotImplementedError

    def settle(self) -> None:
        """Tell the caller; called in the caller's event loop."""
        raise NotImplementedError


class _AwaitedWrite(_Write, Generic[T]):
    def __init__(self, operation: Callable[[sqlite3.Connection], T], *, durable: bool) -> None:
        self.durable = durable
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self.future: asyncio.Future[T] = self.loop.create_future()
        self._operation = operation
        self._result: T

    @property
    def abandoned(self) -> bool:
        return self.future.cancelled()

    def run(self, connection: sqlite3.Connection) -> None:
        self._result = self._operation(connection)

    def settle(self) -> None:
        if self.future.done():
            return
        if self.error is None:
            self.future.set_result(self._result)
        else:
            self.future.set_exception(self.error)


class _DeferredWrite(_Write):
    def __init__(self, operation: Callable[[sqlite3.Connection], None]) -> None:
        self._operation = operation

    def run(self, connection: sqlite3.Connection) -> None:
        self._operation(connection)

    def settle(self) -> None:
        if self.error is not None:
            log.warning("a deferred write failed", error=str(self.error))


def _settle(writes: Sequence[_Write]) -> None:
    for write in writes:
        write.settle()


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells this very file from another one of the same name."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
