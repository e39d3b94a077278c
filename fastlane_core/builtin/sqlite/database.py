"""One SQLite file in this process: a thread that writes, a few that read, shared by everything that uses the file."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import ClassVar, Protocol, TypeVar

from fastlane_core.builtin.sqlite.connection import open_reader, open_writer, prepare_file, transaction
from fastlane_core.builtin.sqlite.look import Look
from fastlane_core.builtin.sqlite.schema import Schema, migrate
from fastlane_core.builtin.sqlite.trouble import DatabaseUnavailable, explain, is_outage
from fastlane_core.builtin.sqlite.writer import Writer
from fastlane_core.coarse_timeout import coarse_timeout
from fastlane_core.daemon_threads import DaemonThreads
from fastlane_core.errors import FastlaneError

T = TypeVar("T")

#: Reads that may wait.
_MAX_READS = 10_000
#: Seconds beyond the wait for locks after which the disk is taken to hang.
_DISK_SECONDS = 30.0


class Companion(Protocol):
    """Something that everybody who uses a file shares, and that ends with the file's last use."""

    def __init__(self, path: Path, busy_seconds: float) -> None: ...

    def close(self) -> None:
        """End it. May block."""


C = TypeVar("C", bound=Companion)


class Database:
    """The threads and connections of one file. `acquire` and `release` block; the rest is for event loops."""

    _open: ClassVar[dict[tuple[int, Path], Database]] = {}
    _lock: ClassVar[threading.Lock] = threading.Lock()

    @classmethod
    def acquire(cls, path: Path, *, busy_seconds: float, readers: int) -> Database:
        """The database of that file in this process, opened by the first who asks. Raises DatabaseUnavailable."""
        # A forked child must not touch its parent's connections, so the process is part of the key.
        key = (os.getpid(), path.resolve())
        with cls._lock:
            database = cls._open.get(key)
            if database is None:
                database = cls._open[key] = cls(key[1], busy_seconds, readers)
            database._users += 1
            return database

    def release(self) -> None:
        """Give up one use; the last one writes what waits and closes everything."""
        with self._lock:
            self._users -= 1
            if self._users:
                return
            self._open.pop((os.getpid(), self.path), None)
            for companion in self._companions.values():
                companion.close()
            self._writer.close()
            self._readers.close()
            self._readers.join()
            for connection in self._reader_connections:
                connection.close()

    def __init__(self, path: Path, busy_seconds: float, readers: int) -> None:
        """Use `acquire`."""
        self.path = path
        self._busy_seconds = busy_seconds
        self._patience = busy_seconds + _DISK_SECONDS
        self._users = 0
        self._companions: dict[type[Companion], Companion] = {}
        prepare_file(path)
        self._writer = Writer(path, busy_seconds)
        self._readers = DaemonThreads(readers, "fastlane-sqlite-reader")
        self._reader_connections: list[sqlite3.Connection] = []
        self._of_thread = threading.local()
        self._reading = 0

    def companion(self, kind: type[C]) -> C:
        """The one object of that class that everybody who uses this file shares."""
        with self._lock:
            found = self._companions.get(kind)
            if not isinstance(found, kind):
                found = self._companions[kind] = kind(self.path, self._busy_seconds)
            return found

    def migrate(self, schema: Schema) -> None:
        """Bring a component's tables up to date. Blocks. Raises SchemaTooNew, DatabaseUnavailable."""
        with closing(open_writer(self.path, self._busy_seconds)) as connection:
            try:
                with transaction(connection, self._busy_seconds):
                    migrate(connection, schema, self.path)
            except sqlite3.Error as error:
                raise DatabaseUnavailable(explain(error, self.path)) from error

    async def write(self, operation: Callable[[sqlite3.Connection], T], *, durable: bool = True) -> T:
        """Run a write operation; returns when it is on disk. What it raises is raised here, and then it left nothing.

        One that need not be `durable` does not wait for the disk: a machine that stops may lose it.
        The operation may be called twice, and must not change anything but the database. Raises DatabaseUnavailable.
        """
        try:
            with coarse_timeout(self._patience):
                return await self._writer.write(operation, durable=durable)
        except TimeoutError as error:
            raise self._hangs("written; whether it was is unknown") from error

    def defer(self, operation: Callable[[sqlite3.Connection], None]) -> None:
        """Run a write operation that nobody waits for, at little cost. Raises DatabaseUnavailable."""
        self._writer.defer(operation)

    async def read(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """Run an operation that only reads. Raises DatabaseUnavailable."""
        if self._reading >= _MAX_READS:
            raise DatabaseUnavailable(f"{self._reading} reads wait for the SQLite database {self.path}: try later")
        self._reading += 1
        try:
            with coarse_timeout(self._patience):
                return await self._readers.run(lambda: self._read(operation))
        except TimeoutError as error:
            raise self._hangs("read") from error
        except RuntimeError as error:
            if self._users:
                raise
            raise DatabaseUnavailable(f"the SQLite database {self.path} is closed") from error
        finally:
            self._reading -= 1

    def _read(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        connection: sqlite3.Connection | None = getattr(self._of_thread, "connection", None)
        if connection is None:
            connection = self._of_thread.connection = open_reader(self.path, self._busy_seconds)
            self._reader_connections.append(connection)
        try:
            return operation(connection)
        except sqlite3.Error as error:
            if is_outage(error):
                raise DatabaseUnavailable(explain(error, self.path)) from error
            raise

    def _hangs(self, what: str) -> DatabaseUnavailable:
        return DatabaseUnavailable(
            f"the SQLite database {self.path} could not be {what} within {self._patience:g} s: its disk hangs or is "
            f"overloaded; look at the kernel's log"
        )


class Session:
    """A database as one contract uses it: trouble is raised as that contract's own error."""

    def __init__(
        self,
        path: Path,
        schema: Schema,
        unavailable: Callable[[str], FastlaneError],
        *,
        busy_seconds: float,
        readers: int,
    ) -> None:
        self._path = path
        self._schema = schema
        self._unavailable = unavailable
        self._busy_seconds = busy_seconds
        self._readers = readers
        self._database: Database | None = None
        self._look: Look | None = None

    async def open(self) -> Database:
        """Open the file and bring its tables up to date. Raises `unavailable`, SchemaTooNew."""
        if self._database is None:
            try:
                self._database = await asyncio.to_thread(self._acquire)
            except DatabaseUnavailable as error:
                raise self._unavailable(str(error)) from error
        return self._database

    async def open_to_look(self) -> None:
        """Open the file as it is, to read it only. Raises `unavailable`, SchemaTooNew, SchemaNotReady."""
        if self._look is None:
            try:
                self._look = await asyncio.to_thread(Look, self._path, self._schema, self._busy_seconds)
            except DatabaseUnavailable as error:
                raise self._unavailable(str(error)) from error

    @property
    def only_looks(self) -> bool:
        """Whether nothing is to be changed."""
        return self._look is not None

    async def close(self) -> None:
        """Let go of the file; no error if it is not open."""
        look, self._look = self._look, None
        if look is not None:
            await asyncio.to_thread(look.close)
        database, self._database = self._database, None
        if database is not None:
            await asyncio.to_thread(database.release)

    async def write(self, operation: Callable[[sqlite3.Connection], T], *, durable: bool = True) -> T:
        """`Database.write`; raises `unavailable`."""
        try:
            return await self._used().write(operation, durable=durable)
        except DatabaseUnavailable as error:
            raise self._unavailable(str(error)) from error

    async def read(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """`Database.read`; raises `unavailable`."""
        try:
            return await (self._look or self._used()).read(operation)
        except DatabaseUnavailable as error:
            raise self._unavailable(str(error)) from error

    def defer(self, operation: Callable[[sqlite3.Connection], None]) -> None:
        """`Database.defer`; raises `unavailable`."""
        try:
            self._used().defer(operation)
        except DatabaseUnavailable as error:
            raise self._unavailable(str(error)) from error

    async def health(self) -> str:
        """A short description; after taking the lock for writing, if it may write. Raises `unavailable`."""

        def journal_mode(connection: sqlite3.Connection) -> str:
            return str(connection.execute("PRAGMA journal_mode").fetchone()[0])

        journal = await (self.read(journal_mode) if self.only_looks else self.write(journal_mode))
        size = await asyncio.to_thread(lambda: self._path.stat().st_size)
        return f"SQLite {sqlite3.sqlite_version}, {self._path}, journal {journal}, {size / 2**20:.1f} MiB"

    def _acquire(self) -> Database:
        database = Database.acquire(self._path, busy_seconds=self._busy_seconds, readers=self._readers)
        try:
            database.migrate(self._schema)
        except BaseException:
            database.release()
            raise
        return database

    def _used(self) -> Database:
        if self._database is None:
            raise self._unavailable(f"the SQLite database {self._path} is not open")
        return self._database
