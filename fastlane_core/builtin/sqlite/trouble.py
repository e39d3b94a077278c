"""What SQLite's errors mean for people: what failed, where, and what to do about it."""

from __future__ import annotations

import sqlite3
from pathlib import Path


class DatabaseUnavailable(Exception):
    """The database cannot be used now; the message is for people. Storage and queue raise it as their own error."""


def is_outage(error: sqlite3.Error) -> bool:
    """Whether the file, disk or another process is at fault, and not the statement."""
    return isinstance(error, sqlite3.DatabaseError) and not isinstance(
        error,
        sqlite3.IntegrityError | sqlite3.ProgrammingError | sqlite3.DataError | sqlite3.NotSupportedError,
    )


def is_busy(error: sqlite3.Error) -> bool:
    """Whether another connection holds the lock."""
    return _primary_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def explain(error: sqlite3.Error, path: Path) -> str:
    """One or two sentences on an error of the database at `path`."""
    advice = {
        sqlite3.SQLITE_BUSY: "another process keeps it locked; end the backup or shell that holds a transaction open, "
        "or give it longer with SQLITE_BUSY_SECONDS",
        sqlite3.SQLITE_FULL: "its disk is full; free some space, what was accepted so far is safe",
        sqlite3.SQLITE_READONLY: "it may not be written; give this user write access to the file and its folder",
        sqlite3.SQLITE_PERM: "access is denied; give this user access to the file and its folder",
        sqlite3.SQLITE_CANTOPEN: "it cannot be opened; give this user access to the file and its folder, and look "
        "for a full disk or too many open files",
        sqlite3.SQLITE_IOERR: "its disk fails or is full; look at free space and the kernel's log",
        sqlite3.SQLITE_CORRUPT: "it is damaged; put it aside and restore a backup",
        sqlite3.SQLITE_NOTADB: "it is no SQLite database, or damaged; set SQLITE_PATH to another file, "
        "or restore a backup",
    }.get(_primary_code(error))
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    detail = f"{error} ({name})"
    return f"the SQLite database {path}: {advice}: {detail}" if advice else f"the SQLite database {path}: {detail}"


def _primary_code(error: sqlite3.Error) -> int:
    # Errors that the sqlite3 module raises by itself carry no code.
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return code & 0xFF
