"""Inserting several rows by one statement: one step of SQLite, during which the process's other threads go on."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import TypeAlias

#: Values of a row, as they are bound.
Row: TypeAlias = tuple[str | float | bytes | None, ...]

#: Rows that one statement inserts: older builds of SQLite bind 999 values.
_ROWS = 100


def insert_rows(connection: sqlite3.Connection, statement: str, rows: Sequence[Row]) -> int:
    """Run `INSERT ... VALUES (...) ON CONFLICT DO NOTHING`, written for one row, with all of them; how many went in."""
    before, values, rest = statement.partition(" VALUES ")
    row, otherwise, what = rest.partition("ON CONFLICT ")
    inserted = 0
    for start in range(0, len(rows), _ROWS):
        some = rows[start : start + _ROWS]
        command = before + values + ",".join([row] * len(some)) + otherwise + what
        inserted += connection.execute(command, [value for each in some for value in each]).rowcount
    return inserted
