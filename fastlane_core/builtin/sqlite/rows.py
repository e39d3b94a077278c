"""Inserting several rows by one statement: one step of SQLite, during which the process's other threads go on."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import TypeAlias

#: Values of a row, as they are bound.
Row: TypeAlias = tuple[str | float | bytes | None, ...]

#: Rows that one statement inserts at most. Between two of them this thread may wait for the process's others, while
#: other processes wait for it.
_ROWS = 1_000


def insert_rows(connection: sqlite3.Connection, statement: str, rows: Sequence[Row]) -> int:
    """Run `INSERT ... VALUES (...) ON CONFLICT DO NOTHING`, written for one row, with all of them; how many went in."""
    before, values, rest = statement.partition(" VALUES ")
    row, otherwise, what = rest.partition("ON CONFLICT ")
    inserted = 0
    if not rows:
        return 0
    most = min(_ROWS, connection.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER) // len(rows[0]))
    for start in range(0, len(rows), most):
        some = rows[start : start + most]
        command = before + values + ",".join([row] * len(some)) + otherwise + what
        inserted += connection.execute(command, [value for each in some for value in each]).rowcount
    return inserted
