"""The storage on SQLite."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from fastlane_core.builtin.sqlite import storage_logs, storage_records
from fastlane_core.builtin.sqlite.connection import snapshot
from fastlane_core.builtin.sqlite.cursors import decode_cursor, encode_cursor
from fastlane_core.builtin.sqlite.database import Session
from fastlane_core.builtin.sqlite.storage_schema import STORAGE_SCHEMA
from fastlane_core.builtin.sqlite.submitting import Submitting, encoded
from fastlane_core.builtin.sqlite.task_search import MAX_FOUND, find_tasks
from fastlane_core.contracts.records import decode_execution, decode_job
from fastlane_core.contracts.storage import (
    FailureFilter,
    Page,
    SharedValue,
    Storage,
    Submission,
    Submitted,
    filtered_page,
)
from fastlane_core.errors import RevisionConflict, StorageUnavailable
from fastlane_core.models import Execution, Job, JsonObject, LogChunk, Stream, Task

#: A row as the sqlite3 module gives it.
Row: TypeAlias = tuple[Any, ...]
Record = TypeVar("Record")

_TASK = "SELECT id, created_at, modified_at, jobs, concurrency FROM tasks "
GET_TASK = _TASK + "WHERE id = ?"
GET_TASK_NUMBER = _TASK + "WHERE number = ?"
LIST_TASKS = _TASK + "WHERE number > ? ORDER BY number LIMIT ?"
LIST_LIMITED_TASKS = """
    SELECT id, created_at, modified_at, jobs, concurrency, number FROM tasks
    WHERE concurrency IS NOT NULL AND number > ? ORDER BY number LIMIT ?
"""
COUNT_TASKS = "SELECT max(number) FROM tasks"
COUNT_JOBS = "SELECT max(number) FROM jobs"
LIST_JOBS = """
    SELECT jobs.modified_at, jobs.number, jobs.record FROM tasks CROSS JOIN jobs ON jobs.task = tasks.number
    WHERE tasks.id = ? AND (jobs.modified_at, jobs.number) < (?, ?)
    ORDER BY jobs.modified_at DESC, jobs.number DESC LIMIT ?
"""
LIST_DUE_JOBS = "SELECT record FROM jobs WHERE due_at <= ? ORDER BY due_at, number LIMIT ?"
NEXT_DUE_JOB = "SELECT min(due_at) FROM jobs WHERE due_at IS NOT NULL"
LIST_SCHEDULED_JOBS = """
    SELECT due_at, number, record FROM jobs WHERE due_at IS NOT NULL AND (due_at, number) > (?, ?)
    ORDER BY due_at, number LIMIT ?
"""
COUNT_SCHEDULED_JOBS = "SELECT count(*) FROM (SELECT 1 FROM jobs WHERE due_at IS NOT NULL LIMIT 10000)"
LIST_EXECUTIONS = """
    SELECT created_at, number, record FROM executions
    WHERE job = ? AND (created_at, number) < (?, ?)
    ORDER BY created_at DESC, number DESC LIMIT ?
"""
LIST_UNFINISHED = """
    SELECT created_at, number, record FROM executions WHERE unfinished = 1 AND number > ? ORDER BY number LIMIT ?
"""
LIST_UNFINISHED_OF_JOB = """
    SELECT created_at, number, record FROM executions INDEXED BY executions_unfinished_by_job
    WHERE job = ? AND unfinished = 1 AND number > ? ORDER BY number LIMIT ?
"""
_LIST_FAILURES = """
    SELECT failed_at, number, record FROM executions
    WHERE {task} failed_at >= ? AND failed_at < ? AND (failed_at, number) < (?, ?)
    ORDER BY failed_at DESC, number DESC LIMIT ?
"""
LIST_FAILURES = _LIST_FAILURES.format(task="")
LIST_FAILURES_OF_TASK = _LIST_FAILURES.format(task="failed_task = ? AND")
LIST_OWING = "SELECT record FROM executions WHERE owes_at <= ? ORDER BY owes_at LIMIT ?"
REMOVE_EXECUTIONS = """
    DELETE FROM executions WHERE number IN (
        SELECT number FROM executions WHERE removable_at < ? ORDER BY removable_at LIMIT ?
    )
"""
GET_STATE = "SELECT value, revision FROM state WHERE scope = ? AND key = ?"
LIST_STATE = "SELECT key, value, revision FROM state WHERE scope = ? ORDER BY key"
PUT_STATE = "INSERT OR REPLACE INTO state (scope, key, value, revision) VALUES (?, ?, ?, ?)"
NEXT_STATE_REVISION = "UPDATE state_revision SET last = last + 1 RETURNING last"
DELETE_STATE = "DELETE FROM state WHERE scope = ? AND key = ?"

#: Rows that a search looks at in one call.
_LOOKED_AT = 500
#: Behind every row, for the first page of a list that goes downwards, and before every row for one that goes upwards.
_BEHIND_ALL = (float("inf"), 2**63 - 1)
_BEFORE_ALL = (float("-inf"), 0)


class SqliteStorage(Storage):
    """Tasks, jobs, executions, logs and shared state in one SQLite file, which several processes may use at once.

    Adding executions of a job that is not stored, or to the log of an execution that is not, raises NotFound.
    """

    def __init__(self, path: Path, *, busy_seconds: float = 10.0, readers: int = 3) -> None:
        """`busy_seconds`: how long to wait for other processes; `readers`: threads that read."""
        self._session = Session(path, STORAGE_SCHEMA, StorageUnavailable, busy_seconds=busy_seconds, readers=readers)
        self._submitting = Submitting(self._session)

    async def open(self) -> None:
        await self._session.open()

    async def open_to_look(self) -> None:
        await self._session.open_to_look()

    async def close(self) -> None:
        await self._session.close()

    async def health(self) -> str:
        return await self._session.health()

    async def submit(self, submissions: Sequence[Submission]) -> Sequence[Submitted]:
        return await self._submitting.submit(submissions)

    # Tasks

    async def get_task(self, task_id: str) -> Task | None:
        rows = await self._rows(GET_TASK, (task_id,))
        return _task(rows[0]) if rows else None

    async def list_tasks(self, *, start: int, limit: int) -> Sequence[Task]:
        return [_task(row) for row in await self._rows(LIST_TASKS, (start, limit))]

    async def search_tasks(self, query: str, *, start: int, limit: int) -> tuple[Sequence[Task], int]:
        def search(connection: sqlite3.Connection) -> tuple[Sequence[Task], int]:
            with snapshot(connection):
                numbers = find_tasks(connection, query)
                if numbers is None:
                    (count,) = connection.execute(COUNT_TASKS).fetchone()
                    numbers = range(1, min(count or 0, MAX_FOUND) + 1)
                page = numbers[start : start + limit]
                return [_task(connection.execute(GET_TASK_NUMBER, (each,)).fetchone()) for each in page], len(numbers)

        return await self._session.read(search)

    async def count_tasks(self) -> int:
        return await self._highest(COUNT_TASKS)

    # Jobs

    async def limit_task(self, task_id: str, concurrency: int | None, *, now: float) -> Task:
        def limit(connection: sqlite3.Connection) -> Task:
            storage_records.limit_task(connection, task_id, concurrency, now)
            return _task(connection.execute(GET_TASK, (task_id,)).fetchone())

        return await self._session.write(limit)

    async def list_limited_tasks(self, *, cursor: str | None, limit: int) -> Page[Task]:
        behind = 0 if cursor is None else decode_cursor(cursor)[1]
        rows = await self._rows(LIST_LIMITED_TASKS, (behind, limit + 1))
        last = encode_cursor(0.0, rows[limit - 1][-1]) if len(rows) > limit else None
        return Page(items=[_task(row[:-1]) for row in rows[:limit]], cursor=last)

    async def get_job(self, task_id: str, job_id: str) -> Job | None:
        rows = await self._rows(storage_records.FIND_JOB, (task_id, job_id))
        return decode_job(rows[0][1]) if rows else None

    async def put_job(self, job: Job) -> Job:
        return await self._session.write(lambda connection: storage_records.update_job(connection, job))

    async def put_jobs(self, jobs: Sequence[Job]) -> Sequence[Job | None]:
        return await self._session.write(lambda connection: storage_records.update_jobs(connection, jobs))

    async def list_due_jobs(self, *, until: float, limit: int) -> Sequence[Job]:
        return [decode_job(record) for (record,) in await self._rows(LIST_DUE_JOBS, (until, limit))]

    async def next_due_job(self) -> float | None:
        due_at: float | None = (await self._rows(NEXT_DUE_JOB, ()))[0][0]
        return due_at

    async def list_scheduled_jobs(self, *, cursor: str | None, limit: int) -> Page[Job]:
        behind = _BEFORE_ALL if cursor is None else decode_cursor(cursor)
        return _page(await self._rows(LIST_SCHEDULED_JOBS, (*behind, limit + 1)), limit, decode_job)

    async def count_scheduled_jobs(self) -> int:
        return await self._highest(COUNT_SCHEDULED_JOBS)

    async def list_jobs(self, task_id: str, *, cursor: str | None, limit: int) -> Page[Job]:
        behind = _BEHIND_ALL if cursor is None else decode_cursor(cursor)
        return _page(await self._rows(LIST_JOBS, (task_id, *behind, limit + 1)), limit, decode_job)

    async def count_jobs(self) -> int:
        return await self._highest(COUNT_JOBS)

    # Executions

    async def get_execution(self, execution_id: str) -> Execution | None:
        return await self._session.read(lambda connection: storage_records.find_execution(connection, execution_id))

    async def add_executions(self, executions: Sequence[Execution]) -> None:
        new = await encoded(storage_records.new_executions, executions)
        await self._session.write(lambda connection: storage_records.add_executions(connection, new))

    async def put_execution(self, execution: Execution) -> Execution:
        return await self._session.write(lambda connection: storage_records.update_execution(connection, execution))

    async def list_executions(self, job_id: str, *, task_id: str, cursor: str | None, limit: int) -> Page[Execution]:
        behind = _BEHIND_ALL if cursor is None else decode_cursor(cursor)
        job = await self._rows(storage_records.FIND_JOB, (task_id, job_id))
        if not job:
            return Page(items=())
        return _page(await self._rows(LIST_EXECUTIONS, (job[0][0], *behind, limit + 1)), limit, decode_execution)

    async def count_executions(self, job_id: str, *, task_id: str) -> int:
        rows = await self._rows(storage_records.FIND_JOB, (task_id, job_id))
        return int(rows[0][2]) if rows else 0

    async def list_unfinished(self, *, cursor: str | None, limit: int) -> Page[Execution]:
        behind = 0 if cursor is None else decode_cursor(cursor)[1]
        return _page(await self._rows(LIST_UNFINISHED, (behind, limit + 1)), limit, decode_execution)

    async def list_unfinished_of_job(
        self, job_id: str, *, task_id: str, cursor: str | None, limit: int
    ) -> Page[Execution]:
        behind = 0 if cursor is None else decode_cursor(cursor)[1]
        job = await self._rows(storage_records.FIND_JOB, (task_id, job_id))
        if not job:
            return Page(items=())
        return _page(await self._rows(LIST_UNFINISHED_OF_JOB, (job[0][0], behind, limit + 1)), limit, decode_execution)

    async def list_failures(self, wanted: FailureFilter, *, cursor: str | None, limit: int) -> Page[Execution]:
        behind = _BEHIND_ALL if cursor is None else decode_cursor(cursor)
        since = -math.inf if wanted.since is None else wanted.since
        until = math.inf if wanted.until is None else wanted.until
        stretch = max(limit, _LOOKED_AT)
        where = (since, until, *behind, stretch)
        if wanted.task_id is None:
            rows = await self._rows(LIST_FAILURES, where)
        else:
            rows = await self._rows(LIST_FAILURES_OF_TASK, (wanted.task_id, *where))
        return filtered_page(
            ((encode_cursor(failed_at, number), decode_execution(record)) for failed_at, number, record in rows),
            wanted.has,
            limit=limit,
            ends=len(rows) < stretch,
        )

    async def list_owing(self, *, until: float, limit: int) -> Sequence[Execution]:
        return [decode_execution(record) for (record,) in await self._rows(LIST_OWING, (until, limit))]

    # Logs

    async def append_log(self, execution_id: str, chunks: Sequence[LogChunk]) -> None:
        await self._session.write(lambda connection: storage_logs.append_log(connection, execution_id, chunks))

    async def read_log(
        self, execution_id: str, *, after: int, stream: Stream | None, max_bytes: int
    ) -> Sequence[LogChunk]:
        return await self._session.read(
            lambda connection: storage_logs.read_log(connection, execution_id, after, stream, max_bytes)
        )

    async def last_log(self, execution_id: str) -> Mapping[Stream, LogChunk]:
        return await self._session.read(lambda connection: storage_logs.last_log(connection, execution_id))

    # Retention

    async def remove_finished(self, *, before: float, limit: int) -> int:
        removed = await self._session.write(
            lambda connection: connection.execute(REMOVE_EXECUTIONS, (before, limit)).rowcount
        )
        while await self._session.write(storage_logs.remove_chunks):
            pass
        return removed

    # Shared state

    async def get_state(self, scope: str, key: str) -> SharedValue | None:
        rows = await self._rows(GET_STATE, (scope, key))
        return SharedValue(value=json.loads(rows[0][0]), revision=rows[0][1]) if rows else None

    async def put_state(self, scope: str, key: str, value: JsonObject, *, revision: int | None) -> int:
        encoded = json.dumps(value)

        def put(connection: sqlite3.Connection) -> int:
            found = connection.execute(GET_STATE, (scope, key)).fetchone()
            if revision is not None and revision != (0 if found is None else found[1]):
                raise RevisionConflict(f"the value {key} of {scope} is not stored with revision {revision}")
            ((new_revision,),) = connection.execute(NEXT_STATE_REVISION).fetchall()
            connection.execute(PUT_STATE, (scope, key, encoded, new_revision))
            return int(new_revision)

        return await self._session.write(put)

    async def list_state(self, scope: str) -> Mapping[str, SharedValue]:
        rows = await self._rows(LIST_STATE, (scope,))
        return {key: SharedValue(value=json.loads(value), revision=revision) for key, value, revision in rows}

    async def delete_state(self, scope: str, key: str) -> None:
        await self._session.write(lambda connection: connection.execute(DELETE_STATE, (scope, key)).rowcount)

    async def _rows(self, query: str, values: tuple[str | float, ...]) -> list[Row]:
        return await self._session.read(lambda connection: connection.execute(query, values).fetchall())

    async def _highest(self, query: str) -> int:
        rows = await self._rows(query, ())
        return rows[0][0] or 0


def _task(row: Row) -> Task:
    task_id, created_at, modified_at, jobs, concurrency = row
    return Task(id=task_id, created_at=created_at, modified_at=modified_at, jobs_count=jobs, concurrency=concurrency)


def _page(rows: Sequence[Row], limit: int, decode: Callable[[bytes], Record]) -> Page[Record]:
    """A page from rows of time, number and record; one row more than `limit` tells that there is another page."""
    shown = rows[:limit]
    cursor = encode_cursor(shown[-1][0], shown[-1][1]) if len(rows) > limit else None
    return Page(items=[decode(record) for _, _, record in shown], cursor=cursor)
