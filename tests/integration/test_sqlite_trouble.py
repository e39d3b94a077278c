"""What goes wrong with an SQLite file is told by path, with advice, as the contract's own error."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from fastlane_core.builtin.sqlite.database import Database
from fastlane_core.builtin.sqlite.queue import SqliteQueue
from fastlane_core.builtin.sqlite.queue_schema import QUEUE_SCHEMA
from fastlane_core.builtin.sqlite.schema import Schema
from fastlane_core.builtin.sqlite.storage import SqliteStorage
from fastlane_core.builtin.sqlite.storage_schema import STORAGE_SCHEMA
from fastlane_core.builtin.sqlite.trouble import DatabaseUnavailable
from fastlane_core.errors import QueueUnavailable, SchemaTooNew, StorageUnavailable
from fastlane_core.testing.examples import a_submission, an_item

Build = Callable[[Path], SqliteStorage | SqliteQueue]

BOTH = pytest.mark.parametrize(
    ("build", "unavailable"),
    [
        (lambda path: SqliteStorage(path, busy_seconds=0.2), StorageUnavailable),
        (lambda path: SqliteQueue(path, clock=time.time, busy_seconds=0.2), QueueUnavailable),
    ],
    ids=["storage", "queue"],
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "fastlane.db"


# Opening


async def test_a_new_file_and_its_folder_are_for_this_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "made" / "fastlane.db"
    storage = SqliteStorage(path)
    await storage.open()
    await storage.submit([a_submission()])
    modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in (path.parent, *path.parent.iterdir())}
    await storage.close()

    assert modes == {"made": 0o700, "fastlane.db": 0o600, "fastlane.db-wal": 0o600, "fastlane.db-shm": 0o600}


@BOTH
@pytest.mark.parametrize("where", ["folder", "file/fastlane.db"])
async def test_a_path_that_cannot_be_a_file_is_told(
    tmp_path: Path, build: Build, unavailable: type[Exception], where: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()

    with pytest.raises(unavailable, match="cannot be opened for writing") as refusal:
        await build(tmp_path / where).open()

    assert str(tmp_path / where) in str(refusal.value)
    assert "SQLITE_PATH" in str(refusal.value)


@BOTH
async def test_a_file_that_is_no_database_is_told_and_left(
    path: Path, build: Build, unavailable: type[Exception]
) -> None:
    path.write_bytes(b"a letter to somebody" * 1_000)

    with pytest.raises(unavailable, match="no SQLite database") as refusal:
        await build(path).open()

    assert str(path) in str(refusal.value)
    assert path.read_bytes() == b"a letter to somebody" * 1_000


@BOTH
async def test_the_database_of_another_program_is_told_and_left(
    path: Path, build: Build, unavailable: type[Exception]
) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE jobs (theirs)")

    with pytest.raises(unavailable, match="belongs to another program"):
        await build(path).open()

    assert tables(path) == {"jobs"}


@BOTH
async def test_a_file_that_was_refused_can_be_opened_once_it_is_mended(
    path: Path, build: Build, unavailable: type[Exception]
) -> None:
    path.write_bytes(b"rubbish" * 1_000)
    opened = build(path)
    with pytest.raises(unavailable):
        await opened.open()
    path.unlink()

    await opened.open()
    assert await opened.health()
    await opened.close()


# While in use


@BOTH
async def test_a_file_that_stays_locked_is_told_and_works_again_later(
    path: Path, build: Build, unavailable: type[Exception]
) -> None:
    opened = build(path)
    await opened.open()
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as holder:
            holder.execute("BEGIN IMMEDIATE")
            with pytest.raises(unavailable, match="another process keeps it locked") as refusal:
                await write(opened)
            assert str(path) in str(refusal.value)
            assert "SQLITE_BUSY_SECONDS" in str(refusal.value)
            with pytest.raises(unavailable):
                await opened.health()
            holder.execute("ROLLBACK")
        await write(opened)
    finally:
        await opened.close()


async def test_a_write_waits_for_a_lock_that_is_given_up(path: Path) -> None:
    storage = SqliteStorage(path, busy_seconds=60.0)
    await storage.open()
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as holder:
            holder.execute("BEGIN IMMEDIATE")
            writing = asyncio.create_task(storage.submit([a_submission()]))
            await asyncio.sleep(0.05)
            assert await storage.count_jobs() == 0
            holder.execute("ROLLBACK")
            await asyncio.wait_for(writing, 30.0)
        assert await storage.count_jobs() == 1
    finally:
        await storage.close()


@BOTH
async def test_nothing_is_accepted_into_a_file_that_was_removed(
    path: Path, build: Build, unavailable: type[Exception]
) -> None:
    opened = build(path)
    await opened.open()
    try:
        path.unlink()
        with pytest.raises(unavailable, match="removed or replaced"):
            await write(opened)
        path.touch()
        with pytest.raises(unavailable, match="removed or replaced"):
            await opened.health()
    finally:
        await opened.close()


@BOTH
async def test_what_is_not_open_says_so(path: Path, build: Build, unavailable: type[Exception]) -> None:
    opened = build(path)
    with pytest.raises(unavailable, match="not open"):
        await write(opened)

    await opened.open()
    await opened.close()
    await opened.close()
    with pytest.raises(unavailable, match="not open"):
        await opened.health()


@BOTH
async def test_a_damaged_table_is_told(path: Path, build: Build, unavailable: type[Exception]) -> None:
    opened = build(path)
    await opened.open()
    try:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("DROP TABLE tasks" if isinstance(opened, SqliteStorage) else "DROP TABLE items")
        with pytest.raises(unavailable, match="no such table") as refusal:
            await write(opened)
        assert str(path) in str(refusal.value)
    finally:
        await opened.close()


# Versions


@BOTH
async def test_a_newer_schema_is_refused_and_left(path: Path, build: Build, unavailable: type[Exception]) -> None:
    opened = build(path)
    await opened.open()
    await opened.close()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE schema_versions SET version = 99")
    before = path.read_bytes()

    with pytest.raises(SchemaTooNew, match="version 99") as refusal:
        await build(path).open()

    assert str(path) in str(refusal.value)
    assert path.read_bytes() == before


OLDER = Schema(component="made up", migrations=(("CREATE TABLE things (name TEXT)",),))
NEWER = Schema(
    component="made up",
    migrations=(
        *OLDER.migrations,
        ("ALTER TABLE things ADD COLUMN size INTEGER", "UPDATE things SET size = length(name)"),
        ("CREATE INDEX things_by_size ON things (size)",),
    ),
)
BROKEN = Schema(component="made up", migrations=(*OLDER.migrations, ("CREATE TABLE half (way)", "NOT SQL")))


@pytest.fixture
def database(path: Path) -> Database:
    database = Database.acquire(path, busy_seconds=5.0, readers=1)
    database.migrate(OLDER)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("INSERT INTO things VALUES ('kept')")
    return database


def test_an_older_file_is_moved_forward_with_its_data(database: Database) -> None:
    database.migrate(NEWER)
    database.migrate(NEWER)

    with closing(sqlite3.connect(database.path)) as connection:
        assert connection.execute("SELECT name, size FROM things").fetchall() == [("kept", 4)]
        assert connection.execute("SELECT version FROM schema_versions").fetchall() == [(3,)]
    with pytest.raises(SchemaTooNew):
        database.migrate(OLDER)
    database.release()


def test_a_migration_that_fails_leaves_the_file_as_it_was(database: Database) -> None:
    with pytest.raises(DatabaseUnavailable, match="syntax error"):
        database.migrate(BROKEN)

    assert tables(database.path) == {"things", "schema_versions"}
    with closing(sqlite3.connect(database.path)) as connection:
        assert connection.execute("SELECT version FROM schema_versions").fetchall() == [(1,)]
    database.migrate(NEWER)
    database.release()


async def test_storage_and_queue_have_versions_of_their_own(path: Path) -> None:
    queue = SqliteQueue(path, clock=time.time)
    await queue.open()
    assert "tasks" not in tables(path)
    storage = SqliteStorage(path)
    await storage.open()
    with closing(sqlite3.connect(path)) as connection:
        versions = dict(connection.execute("SELECT component, version FROM schema_versions").fetchall())
    await storage.close()
    await queue.close()

    assert versions == {"storage": len(STORAGE_SCHEMA.migrations), "queue": len(QUEUE_SCHEMA.migrations)}


async def write(opened: SqliteStorage | SqliteQueue) -> None:
    """Any write."""
    if isinstance(opened, SqliteStorage):
        await opened.submit([a_submission()])
    else:
        await opened.put([an_item()])


def tables(path: Path) -> set[str]:
    """Names of the tables in the file."""
    with closing(sqlite3.connect(path)) as connection:
        return {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
