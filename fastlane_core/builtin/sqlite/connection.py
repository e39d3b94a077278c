"""Opening the file, and beginning to write to it."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from fastlane_core.builtin.sqlite.local_disk import shared_file_system
from fastlane_core.builtin.sqlite.trouble import DatabaseUnavailable, explain, is_busy
from fastlane_core.errors import SettingsError

#: Seconds between tries to get the lock: SQLite's own back-off grows to 100 ms, and starves beside a busy process.
_RETRY_SECONDS = 0.002
#: KiB of pages that each connection keeps in memory.
_WRITER_CACHE = 16_384
_READER_CACHE = 8_192
#: Pages after which the write-ahead log is moved into the database.
_CHECKPOINT_PAGES = 4_000
_JOURNAL_BYTES = 64 * 1024 * 1024


def prepare_file(path: Path) -> None:
    """Make the file, and its folder, for this user alone if they are missing.

    Raises SettingsError for a file system that machines share; DatabaseUnavailable.
    """
    if shared := shared_file_system(path):
        raise SettingsError(
            f"SQLITE_PATH: {path} is on a file system that machines share ({shared}), where SQLite loses data: name a "
            f"file on a local disk, or choose another STORAGE and QUEUE"
        )
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise DatabaseUnavailable(
            f"the SQLite database {path} cannot be opened for writing: {error.strerror}; "
            f"give this user access to the file and its folder, or set SQLITE_PATH to another file"
        ) from error


def open_writer(path: Path, busy_seconds: float) -> sqlite3.Connection:
    """A connection that writes, after `begin`; what it commits is on disk. Raises DatabaseUnavailable."""
    return _open(path, busy_seconds, (f"PRAGMA cache_size = -{_WRITER_CACHE}", "PRAGMA synchronous = FULL"))


def open_reader(path: Path, busy_seconds: float) -> sqlite3.Connection:
    """A connection that only reads. Raises DatabaseUnavailable."""
    pragmas = (
        f"PRAGMA busy_timeout = {round(busy_seconds * 1000)}",
        f"PRAGMA cache_size = -{_READER_CACHE}",
        "PRAGMA query_only = ON",
    )
    return _open(path, busy_seconds, pragmas)


def open_look(path: Path, busy_seconds: float) -> sqlite3.Connection:
    """A connection to a file that is there, which changes neither it nor what lies beside it, not even when it ends.

    Raises DatabaseUnavailable.
    """
    # The last connection that may write moves the write-ahead log into the database; one that only reads leaves an
    # empty log behind where there was none.
    mode = "ro" if path.with_name(f"{path.name}-wal").exists() else "rw"
    try:
        connection = sqlite3.connect(
            f"file:{quote(str(path.resolve()))}?mode={mode}",
            uri=True,
            timeout=busy_seconds,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.execute("PRAGMA query_only = ON")
    except sqlite3.Error as error:
        raise DatabaseUnavailable(explain(error, path)) from error
    return connection


def begin(connection: sqlite3.Connection, busy_seconds: float) -> None:
    """Begin a transaction that writes, waiting for other processes. Raises sqlite3.OperationalError."""
    deadline = time.monotonic() + busy_seconds
    while True:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if not is_busy(error) or time.monotonic() >= deadline:
                raise
            time.sleep(_RETRY_SECONDS)
        else:
            return


@contextmanager
def transaction(connection: sqlite3.Connection, busy_seconds: float) -> Iterator[None]:
    """Commits at the end, or undoes everything when an exception leaves the block."""
    begin(connection, busy_seconds)
    try:
        yield
        connection.execute("COMMIT")
    finally:
        roll_back(connection)


@contextmanager
def snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    """All statements in the block read the same state."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        roll_back(connection)


def roll_back(connection: sqlite3.Connection) -> None:
    """Undo the transaction, if there still is one: SQLite ends it by itself after some errors."""
    if connection.in_transaction:
        connection.execute("ROLLBACK")


def _open(path: Path, busy_seconds: float, pragmas: tuple[str, ...]) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(
            path, timeout=0, isolation_level=None, check_same_thread=False, cached_statements=256
        )
    except sqlite3.Error as error:
        raise DatabaseUnavailable(explain(error, path)) from error
    try:
        _use_write_ahead_log(connection, path, busy_seconds)
        for pragma in (
            f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}",
            f"PRAGMA journal_size_limit = {_JOURNAL_BYTES}",
            "PRAGMA temp_store = MEMORY",
            "PRAGMA secure_delete = FAST",
            *pragmas,
        ):
            connection.execute(pragma)
    except sqlite3.Error as error:
        connection.close()
        raise DatabaseUnavailable(explain(error, path)) from error
    except BaseException:
        connection.close()
        raise
    return connection


def _use_write_ahead_log(connection: sqlite3.Connection, path: Path, busy_seconds: float) -> None:
    # Switching is done once per file, and SQLite does not wait for its lock even where a busy time-out is set.
    deadline = time.monotonic() + busy_seconds
    while True:
        try:
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.OperationalError as error:
            if not is_busy(error) or time.monotonic() >= deadline:
                raise
            time.sleep(_RETRY_SECONDS)
            continue
        if mode != "wal":
            raise DatabaseUnavailable(
                f"the SQLite database {path} is on a file system that cannot share memory between processes "
                f"(a network share?): set SQLITE_PATH to a file on a local disk"
            )
        return
