"""A file that is looked at and left as it is: nothing is made, brought up to date, or written."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from fastlane_core.builtin.sqlite.connection import open_look
from fastlane_core.builtin.sqlite.schema import Schema, check
from fastlane_core.builtin.sqlite.trouble import DatabaseUnavailable, explain, is_outage
from fastlane_core.errors import SchemaNotReady

T = TypeVar("T")


class Look:
    """One connection that only reads."""

    def __init__(self, path: Path, schema: Schema, busy_seconds: float) -> None:
        """Blocks. Raises DatabaseUnavailable, SchemaNotReady, SchemaTooNew."""
        self._path = path
        _see_file(path)
        self._connection = open_look(path, busy_seconds)
        try:
            check(self._connection, schema, path)
        except sqlite3.Error as error:
            self._connection.close()
            raise DatabaseUnavailable(explain(error, path)) from error
        except BaseException:
            self._connection.close()
            raise
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fastlane-sqlite-look")

    async def read(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """Run an operation that only reads. Raises DatabaseUnavailable."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, operation, self._connection)
        except sqlite3.Error as error:
            if is_outage(error):
                raise DatabaseUnavailable(explain(error, self._path)) from error
            raise

    def close(self) -> None:
        """End it. Blocks."""
        self._thread.shutdown()
        self._connection.close()


def _see_file(path: Path) -> None:
    """Raise SchemaNotReady where there is no file yet, and DatabaseUnavailable where this user could not write it."""
    if path.exists():
        if not os.access(path, os.R_OK | os.W_OK):
            raise DatabaseUnavailable(
                f"the SQLite database {path} cannot be opened for writing: give this user access to the file and its "
                f"folder, or set SQLITE_PATH to another file"
            )
        return
    folder = next(each for each in path.resolve().parents if each.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise DatabaseUnavailable(
            f"the SQLite database {path} cannot be made: give this user access to {folder}, or set SQLITE_PATH to "
            f"another file"
        )
    raise SchemaNotReady(f"there is no SQLite database {path} yet")
