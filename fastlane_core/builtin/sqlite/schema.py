"""Tables, their versions, and moving a file forward from an older version.

Storage and queue are components with versions of their own, since either may be used without the other. A component's
version is the number of migrations that were applied to the file.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastlane_core.builtin.sqlite.trouble import DatabaseUnavailable
from fastlane_core.errors import SchemaNotReady, SchemaTooNew

#: Marks a file as Fastlane's ("Flan"), so that somebody else's database is never written to.
APPLICATION_ID = 0x466C616E

Migration = Sequence[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Schema:
    """One component's tables, as the statements that lead to them."""

    component: str
    #: Statements of each version, oldest first. What was released is never changed, only added to.
    migrations: Sequence[Migration]


def migrate(connection: sqlite3.Connection, schema: Schema, path: Path) -> None:
    """Bring the component's tables to the newest version, inside the transaction that the caller has begun.

    Raises SchemaTooNew, and DatabaseUnavailable for a database that is not Fastlane's.
    """
    if not _is_claimed(connection, path):
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("CREATE TABLE schema_versions (component TEXT PRIMARY KEY, version INTEGER NOT NULL)")
    version, newest = _version(connection, schema, path), len(schema.migrations)
    if version == newest:
        return
    for migration in schema.migrations[version:]:
        for statement in migration:
            connection.execute(statement)
    connection.execute("INSERT OR REPLACE INTO schema_versions VALUES (?, ?)", (schema.component, newest))


def check(connection: sqlite3.Connection, schema: Schema, path: Path) -> None:
    """See whether the component's tables can be read as they are.

    Raises SchemaTooNew, SchemaNotReady, and DatabaseUnavailable for a database that is not Fastlane's.
    """
    version = _version(connection, schema, path) if _is_claimed(connection, path) else 0
    newest = len(schema.migrations)
    if not version:
        raise SchemaNotReady(f"the SQLite database {path} has no {schema.component} tables yet")
    if version < newest:
        raise SchemaNotReady(
            f"the SQLite database {path} has version {version} of the {schema.component} tables, and this Fastlane "
            f"needs version {newest}"
        )


def _is_claimed(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether the file is Fastlane's; False for one that is nobody's. Raises DatabaseUnavailable."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    if application == APPLICATION_ID:
        return True
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application or tables:
        raise DatabaseUnavailable(
            f"the SQLite database {path} belongs to another program: set SQLITE_PATH to a file of Fastlane's own"
        )
    return False


def _version(connection: sqlite3.Connection, schema: Schema, path: Path) -> int:
    row = connection.execute("SELECT version FROM schema_versions WHERE component = ?", (schema.component,)).fetchone()
    version, newest = 0 if row is None else int(row[0]), len(schema.migrations)
    if version > newest:
        raise SchemaTooNew(
            f"the SQLite database {path} has version {version} of the {schema.component} tables, and this Fastlane "
            f"knows versions up to {newest}: install the newer Fastlane that wrote it, or use another file"
        )
    return version
