"""What a statement costs on SQLite does not grow with what is stored: by query plan, and by steps of its machine."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from fastlane_core.builtin.sqlite import (
    queue_items,
    queue_limits,
    queue_views,
    storage,
    storage_logs,
    storage_records,
    task_search,
    wakeups,
)
from fastlane_core.builtin.sqlite.database import Database
from fastlane_core.builtin.sqlite.queue_schema import QUEUE_SCHEMA
from fastlane_core.builtin.sqlite.storage_schema import STORAGE_SCHEMA
from fastlane_core.contracts.queue import Limit, task_key
from fastlane_core.contracts.storage import Submission
from fastlane_core.models import Status, Stream
from fastlane_core.testing.examples import a_chunk, a_job, a_submission, an_execution, an_item

#: Tables that hold a row for a lane, a limit that was set, a scope's value, or a message, and so stay small.
SMALL = {"capacities", "lanes", "rebuilt", "removed_logs", "state_revision", "topics"}
#: What a store a hundred times as big may cost more: trees have a level or two more.
TOLERANCE = 1.3

Fill = Callable[[sqlite3.Connection, int], None]
Use = Callable[[sqlite3.Connection], object]


def statements() -> Iterator[tuple[str, str]]:
    """Every statement of storage and queue, by name."""
    modules: list[ModuleType] = [
        queue_items,
        queue_limits,
        queue_views,
        storage,
        storage_logs,
        storage_records,
        task_search,
        wakeups,
    ]
    for module in modules:
        for name, value in vars(module).items():
            if name.isupper() and not name.startswith("_") and isinstance(value, str):
                yield f"{module.__name__.rpartition('.')[2]}.{name}", value


def connect(path: Path) -> sqlite3.Connection:
    """A connection to a new file with all tables."""
    database = Database.acquire(path, busy_seconds=5.0, readers=1)
    database.migrate(STORAGE_SCHEMA)
    database.migrate(QUEUE_SCHEMA)
    database.release()
    return sqlite3.connect(path, isolation_level=None)


def test_every_statement_is_looked_at() -> None:
    names = {name for name, _ in statements()}

    assert {"queue_items.GRANT", "storage.LIST_JOBS", "storage_records.UPDATE_EXECUTION"} <= names
    assert len(names) > 50


@pytest.mark.parametrize(("name", "statement"), list(statements()), ids=[name for name, _ in statements()])
def test_a_statement_is_served_by_an_index(tmp_path: Path, name: str, statement: str) -> None:
    connection = connect(tmp_path / "fastlane.db")
    plan = connection.execute("EXPLAIN QUERY PLAN " + statement, [None] * statement.count("?")).fetchall()
    connection.close()

    for *_, step in plan:
        assert "TEMP B-TREE" not in step, plan
        if step.startswith("SCAN "):
            assert step.split()[1] in SMALL | {"CONSTANT", "(subquery-1)"}, plan


def steps(connection: sqlite3.Connection, use: Use) -> int:
    """Instructions of SQLite's machine that it takes."""
    count = 0

    def step() -> int:
        nonlocal count
        count += 1
        return 0

    connection.execute("BEGIN")
    connection.set_progress_handler(step, 1)
    use(connection)
    connection.set_progress_handler(None, 1)
    connection.execute("ROLLBACK")
    return count


def put_waiting(connection: sqlite3.Connection, count: int) -> None:
    queue_items.put(connection, [an_item(priority=number % 10) for number in range(count)], 1.0)


def put_delayed(connection: sqlite3.Connection, count: int) -> None:
    queue_items.put(connection, [an_item(due_at=100.0 + number, priority=9) for number in range(count)], 1.0)
    queue_items.put(connection, [an_item() for _ in range(10)], 1.0)


def put_leased(connection: sqlite3.Connection, count: int) -> None:
    queue_items.put(connection, [an_item() for _ in range(count)], 1.0)
    queue_items.claim(connection, "lane", "worker", 1.0, 1_000.0, capacity=count, limit=count)
    queue_items.put(connection, [an_item() for _ in range(10)], 1.0)


def put_other_lane(connection: sqlite3.Connection, count: int) -> None:
    queue_items.put(connection, [an_item(lane="other", priority=9) for _ in range(count)], 1.0)
    queue_items.put(connection, [an_item() for _ in range(10)], 1.0)


def put_held(connection: sqlite3.Connection, count: int) -> None:
    limits = (Limit(key=task_key("limited"), capacity=2),)
    queue_items.put(connection, [an_item(task_id="limited", limits=limits) for _ in range(count)], 1.0)
    queue_items.claim(connection, "lane", "worker", 1.0, 1_000.0, capacity=2, limit=2)
    queue_items.put(connection, [an_item() for _ in range(10)], 1.0)


def claim(connection: sqlite3.Connection) -> object:
    claimed = queue_items.claim(connection, "lane", "worker", 2.0, 30.0, capacity=10**9, limit=3)
    assert len(claimed.leases) == 3
    return claimed


def claim_and_ack(connection: sqlite3.Connection) -> None:
    claimed = queue_items.claim(connection, "lane", "worker", 2.0, 30.0, capacity=10**9, limit=3)
    for lease in claimed.leases:
        queue_items.ack(connection, lease)


@pytest.mark.parametrize("fill", [put_waiting, put_delayed, put_leased, put_other_lane, put_held])
@pytest.mark.parametrize(
    "use",
    [
        claim,
        claim_and_ack,
        lambda connection: queue_items.put(connection, [an_item()], 1.0),
        lambda connection: queue_views.peek(connection, "lane", 5),
        lambda connection: queue_views.lane_state(connection, ["lane", "other"]),
        lambda connection: queue_views.contains(connection, ["absent"]),
    ],
    ids=["claim", "claim_and_ack", "put", "peek", "lane_state", "contains"],
)
def test_a_step_of_the_queue_costs_the_same_however_much_it_holds(tmp_path: Path, fill: Fill, use: Use) -> None:
    costs = []
    for count in (200, 20_000):
        connection = connect(tmp_path / f"{count}.db")
        connection.execute("BEGIN")
        queue_items.mark_rebuilt(connection)
        fill(connection, count)
        connection.execute("COMMIT")
        costs.append(steps(connection, use))
        connection.close()

    assert costs[1] <= costs[0] * TOLERANCE


def store(connection: sqlite3.Connection, count: int) -> None:
    """History of a task with one job of many executions, of many jobs, of many tasks; and one long log."""
    job = a_job("busy", "busy job")
    storage_records.submit(connection, [replace(a_submission(), job=job, execution=an_execution(job, "followed"))])
    many = [
        an_execution(job, status=Status.DONE, finished_at=1.0 + number, created_at=number) for number in range(count)
    ]
    storage_records.add_executions(connection, storage_records.new_executions(many))
    storage_records.submit(connection, [a_submission("busy") for _ in range(count)])
    scheduled = [a_job("scheduled", due_at=float(number)) for number in range(count)]
    storage_records.submit(connection, [Submission(job=job, execution=None) for job in scheduled])
    storage_records.submit(connection, [a_submission(f"task {number:06}") for number in range(count)])
    storage_logs.append_log(
        connection,
        "followed",
        [a_chunk(1, stream=Stream.STDERR), *(a_chunk(number) for number in range(2, count))],
    )


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[tuple[int, sqlite3.Connection]]]:
    """A small store and one that holds a hundred times as much."""
    filled = []
    for count in (100, 10_000):
        connection = connect(tmp_path_factory.mktemp("store") / "fastlane.db")
        connection.execute("BEGIN")
        store(connection, count)
        connection.execute("COMMIT")
        filled.append((count, connection))
    yield filled
    for _, connection in filled:
        connection.close()


@pytest.mark.parametrize(
    "use",
    [
        lambda connection, count: storage_records.submit(connection, [a_submission("busy")]),
        lambda connection, count: connection.execute(storage.COUNT_TASKS).fetchall(),
        lambda connection, count: connection.execute(storage.COUNT_JOBS).fetchall(),
        lambda connection, count: connection.execute(storage.LIST_TASKS, (count - 20, 20)).fetchall(),
        lambda connection, count: connection.execute(storage.LIST_JOBS, ("busy", 1e99, 0, 20)).fetchall(),
        lambda connection, count: connection.execute(storage.LIST_DUE_JOBS, (1e99, 20)).fetchall(),
        lambda connection, count: connection.execute(storage.NEXT_DUE_JOB).fetchall(),
        lambda connection, count: connection.execute(storage.LIST_SCHEDULED_JOBS, (count / 2, 0, 20)).fetchall(),
        lambda connection, count: connection.execute(storage.LIST_EXECUTIONS, (1, 1e99, 0, 20)).fetchall(),
        lambda connection, count: connection.execute(storage.LIST_EXECUTIONS, (1, count / 2, 0, 20)).fetchall(),
        lambda connection, count: connection.execute(storage_records.FIND_JOB, ("busy", "busy job")).fetchall(),
        lambda connection, count: connection.execute(storage.LIST_UNFINISHED, (0, 20)).fetchall(),
        lambda connection, count: connection.execute(storage.LIST_UNFINISHED_OF_JOB, (1, 0, 20)).fetchall(),
        lambda connection, count: connection.execute(storage.LIST_OWING, (1e99, 20)).fetchall(),
        lambda connection, count: connection.execute(storage.REMOVE_EXECUTIONS, (1e99, 20)).rowcount,
        lambda connection, count: task_search.find_tasks(connection, "00001"),
        lambda connection, count: storage_logs.read_log(connection, "followed", 0, Stream.STDERR, 1_000),
        lambda connection, count: storage_logs.read_log(connection, "followed", count - 5, None, 1_000),
        lambda connection, count: storage_logs.last_log(connection, "followed"),
        lambda connection, count: storage_logs.append_log(connection, "followed", [a_chunk(count)]),
    ],
    ids=[
        *("submit", "count_tasks", "count_jobs", "list_tasks at the end", "list_jobs"),
        *("list_due_jobs", "next_due_job", "list_scheduled_jobs in the middle", "list_executions"),
        *(
            "list_executions in the middle",
            "count_executions",
            "list_unfinished",
            "list_unfinished_of_job",
            "list_owing",
            "remove_finished",
        ),
        *("search_tasks", "read_log of a rare stream", "read_log at the end", "last_log", "append_log"),
    ],
)
def test_a_step_of_the_storage_costs_the_same_however_much_it_holds(
    stores: list[tuple[int, sqlite3.Connection]], use: Callable[[sqlite3.Connection, int], object]
) -> None:
    small, big = (
        steps(connection, lambda connection, count=count: use(connection, count))  # type: ignore[misc]
        for count, connection in stores
    )

    assert big <= small * TOLERANCE
