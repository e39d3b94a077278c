"""The thread that writes: commits that are shared, failures that are not."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from fastlane_core.builtin.sqlite import writer
from fastlane_core.builtin.sqlite.connection import open_writer
from fastlane_core.builtin.sqlite.database import Database
from fastlane_core.builtin.sqlite.queue import SqliteQueue
from fastlane_core.builtin.sqlite.storage import SqliteStorage
from fastlane_core.builtin.sqlite.trouble import DatabaseUnavailable
from fastlane_core.testing.examples import a_submission, an_item

INSERT = "INSERT INTO things VALUES (?)"
Operation = Callable[[sqlite3.Connection], None]


class Refused(Exception):
    """Raised by an operation of a test."""


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database.acquire(tmp_path / "things.db", busy_seconds=30.0, readers=2)
    with closing(open_writer(database.path, 5.0)) as connection:
        connection.execute("CREATE TABLE things (number INTEGER PRIMARY KEY)")
    yield database
    await asyncio.to_thread(database.release)


def insert(number: int) -> Operation:
    """An operation that adds a row."""

    def operation(connection: sqlite3.Connection) -> None:
        connection.execute(INSERT, (number,))

    return operation


def stored(database: Database) -> list[int]:
    """The rows that are committed, as another process sees them."""
    with closing(sqlite3.connect(database.path)) as connection:
        return [number for (number,) in connection.execute("SELECT number FROM things ORDER BY number")]


class Held:
    """Keeps the file locked, so that writes gather behind one another."""

    def __init__(self, database: Database) -> None:
        self._connection = sqlite3.connect(database.path, isolation_level=None)

    def __enter__(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, *_: object) -> None:
        self._connection.execute("ROLLBACK")
        self._connection.close()


async def gather(database: Database, operations: list[Operation]) -> Sequence[object]:
    """Let all wait together, then run."""
    with Held(database):
        # The first is taken alone, and keeps the others waiting for its turn.
        writes = [asyncio.create_task(database.write(insert(-1)))]
        await asyncio.sleep(0)
        async with asyncio.timeout(60):
            while database._writer._waiting:
                await asyncio.sleep(0.001)
        writes += [asyncio.create_task(database.write(operation)) for operation in operations]
        await asyncio.sleep(0)
    return (await asyncio.gather(*writes, return_exceptions=True))[1:]


async def test_writes_that_wait_are_committed_together(database: Database) -> None:
    seen: list[list[int]] = []

    def look(connection: sqlite3.Connection) -> None:
        connection.execute(INSERT, (100,))
        seen.append(stored(database))

    await gather(database, [*(insert(number) for number in range(20)), look])

    assert seen == [[-1]]
    assert stored(database) == [-1, *range(20), 100]


async def test_writes_of_the_next_turns_of_the_event_loop_join_the_first(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_GATHER_SECONDS", 60.0)
    seen: list[int] = []

    def second(connection: sqlite3.Connection) -> None:
        seen.extend(stored(database))
        connection.execute(INSERT, (2,))

    first = asyncio.create_task(database.write(insert(1), durable=False))
    await asyncio.sleep(0)
    # Time enough for a thread that was told already.
    time.sleep(0.05)
    await database.write(second, durable=False)
    await first

    assert seen == []
    assert stored(database) == [1, 2]


async def test_a_write_waits_for_others_no_longer_than_a_moment(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_TURNS", 1_000_000_000)
    await asyncio.wait_for(database.write(insert(1), durable=False), 30.0)


async def test_what_waits_for_an_item_is_claimed_by_the_transaction_that_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_GATHER_SECONDS", 60.0)
    batches: list[int] = []
    commit = writer.Writer._commit

    def counted(self: writer.Writer, batch: Sequence[writer._Write]) -> None:
        batches.append(len(batch))
        commit(self, batch)

    queue = SqliteQueue(tmp_path / "queue.db", clock=time.time)
    await queue.open()
    await queue.rebuilt()

    async def claimed() -> int:
        while not (leases := await queue.claim("a", worker="w", capacity=9, limit=9, lease_seconds=30.0)):
            await queue.wait(["a"], 30.0)
        return len(leases)

    waiting = asyncio.create_task(claimed())
    await asyncio.sleep(0.5)
    monkeypatch.setattr(writer.Writer, "_commit", counted)
    await queue.put([an_item(lane="a")])

    assert await asyncio.wait_for(waiting, 30.0) == 1
    assert batches == [2]
    await queue.close()


async def test_a_write_that_fails_fails_its_own_caller_alone(database: Database) -> None:
    def fail_at_once(connection: sqlite3.Connection) -> None:
        raise Refused

    def fail_half_way(connection: sqlite3.Connection) -> None:
        connection.execute(INSERT, (50,))
        connection.execute(INSERT, (51,))
        raise Refused

    operations = [insert(1), fail_at_once, insert(2), fail_half_way, insert(3), insert(1), insert(4)]
    results = await gather(database, operations)

    assert [type(result) for result in results] == [
        type(None), Refused, type(None), Refused, type(None), sqlite3.IntegrityError, type(None),
    ]  # fmt: skip
    assert stored(database) == [-1, 1, 2, 3, 4]


async def test_later_writes_see_earlier_ones_but_not_failed_ones(database: Database) -> None:
    counts: list[int] = []

    def fail_half_way(connection: sqlite3.Connection) -> None:
        connection.execute(INSERT, (50,))
        raise Refused

    def count(connection: sqlite3.Connection) -> None:
        counts.append(connection.execute("SELECT count(*) FROM things WHERE number >= 0").fetchone()[0])

    await gather(database, [insert(1), fail_half_way, insert(2), count])

    assert counts[-1] == 2


async def test_each_caller_gets_its_own_exception(database: Database) -> None:
    (database.path).unlink()
    results = await asyncio.gather(*(database.write(insert(n)) for n in range(3)), return_exceptions=True)

    assert all(isinstance(result, DatabaseUnavailable) for result in results)
    assert len({id(result) for result in results}) == 3


async def test_a_write_that_nobody_waits_for_any_more_is_not_begun(database: Database) -> None:
    with Held(database):
        first = asyncio.create_task(database.write(insert(1)))
        await asyncio.sleep(0.05)
        given_up = asyncio.create_task(database.write(insert(2)))
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
    await first
    await database.write(insert(3))

    assert stored(database) == [1, 3]


async def test_closing_writes_what_waits(tmp_path: Path) -> None:
    database = Database.acquire(tmp_path / "things.db", busy_seconds=30.0, readers=1)
    with closing(open_writer(database.path, 5.0)) as connection:
        connection.execute("CREATE TABLE things (number INTEGER PRIMARY KEY)")
    with Held(database):
        writes = [asyncio.create_task(database.write(insert(number))) for number in range(5)]
        await asyncio.sleep(0.05)
        closing_it = asyncio.create_task(asyncio.to_thread(database.release))
        await asyncio.sleep(0.05)
    await closing_it
    await asyncio.gather(*writes)

    assert stored(database) == list(range(5))


async def test_a_deferred_write_is_made_though_nobody_waits(database: Database) -> None:
    database.defer(insert(7))

    async with asyncio.timeout(30.0):
        while stored(database) != [7]:
            await asyncio.sleep(0.01)


async def test_a_deferred_write_that_fails_spoils_no_other(database: Database) -> None:
    await database.write(insert(1))
    database.defer(insert(1))
    await database.write(insert(2))
    database.defer(insert(3))
    await asyncio.to_thread(database.release)
    try:
        assert stored(database) == [1, 2, 3]
    finally:
        Database.acquire(database.path, busy_seconds=30.0, readers=2)


async def test_readers_cannot_write(database: Database) -> None:
    with pytest.raises(DatabaseUnavailable, match="may not be written"):
        await database.read(insert(1))

    assert stored(database) == []


async def test_storage_and_queue_of_one_process_share_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "fastlane.db"
    monkeypatch.chdir(tmp_path)
    storage, queue = SqliteStorage(path), SqliteQueue(Path("./fastlane.db"), clock=time.time)
    await storage.open()
    await queue.open()
    first, second = (Database.acquire(path, busy_seconds=1.0, readers=1) for _ in range(2))
    assert first is second
    for database in (first, second):
        database.release()

    await storage.close()
    await queue.put([an_item("still open")])
    assert await queue.contains(["still open"]) == {"still open"}
    await storage.open()
    await queue.close()
    await storage.submit([a_submission()])
    assert await storage.count_jobs() == 1
    await storage.close()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["fastlane.db"]


async def test_a_commit_waits_for_the_disk_if_one_of_its_writes_must(database: Database) -> None:
    seen: list[tuple[int, int]] = []

    def noting(number: int) -> Operation:
        def operation(connection: sqlite3.Connection) -> None:
            (level,) = connection.execute("PRAGMA synchronous").fetchone()
            seen.append((number, level))

        return operation

    normal, full = 1, 2
    await database.write(noting(1), durable=False)
    await database.write(noting(2))
    with Held(database):
        blocker = asyncio.create_task(database.write(insert(1), durable=False))
        await asyncio.sleep(0)
        together = [asyncio.create_task(database.write(noting(n), durable=n == 4)) for n in (3, 4, 5)]
        await asyncio.sleep(0)
    await asyncio.gather(blocker, *together)
    await database.write(noting(6), durable=False)
    assert seen == [(1, normal), (2, full), *((n, full) for n in (3, 4, 5)), (6, normal)]
