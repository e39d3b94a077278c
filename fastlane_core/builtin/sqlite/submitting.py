"""Storing submissions: those that come at the same time by one write, and new jobs by one statement a table."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import chain, count
from typing import NamedTuple, TypeAlias, TypeVar

from fastlane_core.builtin.sqlite.database import Session
from fastlane_core.builtin.sqlite.rows import Row, insert_rows
from fastlane_core.builtin.sqlite.storage_records import (
    INSERT_EXECUTION,
    INSERT_NUMBERED_JOB,
    execution_values,
    submit,
    touch_task,
)
from fastlane_core.contracts.records import encode_job
from fastlane_core.contracts.storage import Submission, Submitted
from fastlane_core.errors import RevisionConflict, StorageUnavailable
from fastlane_core.models import Job
from fastlane_core.quick_dataclass import replace

#: What each call is answered with, or fails with.
_Results: TypeAlias = Sequence[Sequence[Submitted] | RevisionConflict]

T = TypeVar("T")
E = TypeVar("E")

#: Records that are encoded without a thread of their own.
_ENCODED_IN_PLACE = 64
#: Turns of the event loop that calls are gathered for: of no length where nothing else is to be done, and else the time
#: in which others come that share a transaction. Small ones cost the most: their thread and the loop's wait in turn.
_TURNS = 8
#: Submissions after which further calls are stored by another write; calls that may wait.
_TOGETHER = 1_000
_MAX_WAITING = 20_000


class _New(NamedTuple):
    """A submission on its way into the tables: the values of its rows but those that only the tables know."""

    stored: Submitted
    job: Row
    execution: Row | None


class _Call(NamedTuple):
    """What one call wants stored, and the same encoded if all of it is new."""

    submissions: Sequence[Submission]
    new: Sequence[_New] | None


class Submitting:
    """Gathers the calls that come within a few turns of the event loop, or while others are stored.

    One that cannot be stored fails alone.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        #: What further calls join, and what stores the newest calls.
        self._open: _Batch | None = None
        self._newest: asyncio.Task[_Results] | None = None
        #: Calls that are not answered yet.
        self._waiting = 0

    async def submit(self, submissions: Sequence[Submission]) -> Sequence[Submitted]:
        """`Storage.submit`."""
        if self._waiting >= _MAX_WAITING:
            raise StorageUnavailable(f"{self._waiting} submissions wait for SQLite: its disk is too slow; try later")
        self._waiting += 1
        try:
            new = None
            if all(_is_new(each.job) for each in submissions):
                new = await encoded(_all_new, submissions)
            batch = self._joined()
            place = len(batch.calls)
            batch.calls.append(_Call(submissions, new))
            batch.size += len(submissions)
            try:
                # Whoever is cancelled must not take the others along.
                results = await asyncio.shield(batch.storing)
            except StorageUnavailable as error:
                raise StorageUnavailable(str(error)) from error
        finally:
            self._waiting -= 1
        result = results[place]
        if isinstance(result, RevisionConflict):
            raise result
        return result

    def _joined(self) -> _Batch:
        if self._open is None or self._open.size >= _TOGETHER:
            batch = self._open = _Batch()
            batch.storing = self._newest = asyncio.create_task(self._store(batch, self._newest))
        return self._open

    async def _store(self, batch: _Batch, before: asyncio.Task[_Results] | None) -> _Results:
        try:
            if before is not None:
                await asyncio.wait([before])
            for _ in range(_TURNS):
                await asyncio.sleep(0)
        finally:
            if self._open is batch:
                self._open = None
        calls = batch.calls
        new = [call.new for call in calls if call.new is not None]
        try:
            if len(new) == len(calls):
                with suppress(_Exists):
                    return await self._session.write(lambda connection: _store_new(connection, new))
            return await self._session.write(
                lambda connection: [_store_one(connection, call.submissions) for call in calls]
            )
        finally:
            if self._newest is batch.storing:
                self._newest = None


class _Batch:
    """Calls that one write stores."""

    storing: asyncio.Task[_Results]

    def __init__(self) -> None:
        self.calls: list[_Call] = []
        #: Submissions in them.
        self.size = 0


async def encoded(encode: Callable[[Sequence[T]], E], records: Sequence[T]) -> E:
    """Records as `encode` makes them: before the transaction, for whose end other processes wait."""
    return await asyncio.to_thread(encode, records) if len(records) > _ENCODED_IN_PLACE else encode(records)


class _Exists(Exception):
    """Something that was to be inserted is there already."""


def _is_new(job: Job) -> bool:
    return not job.revision and job.idempotency_key is None


def _store_one(
    connection: sqlite3.Connection, submissions: Sequence[Submission]
) -> Sequence[Submitted] | RevisionConflict:
    connection.execute("SAVEPOINT one_call")
    try:
        return submit(connection, submissions)
    except RevisionConflict as error:
        connection.execute("ROLLBACK TO one_call")
        return error
    finally:
        connection.execute("RELEASE one_call")


def _all_new(submissions: Sequence[Submission]) -> Sequence[_New]:
    return [_new(each) for each in submissions]


def _new(submission: Submission) -> _New:
    job, execution = replace(submission.job, revision=1), submission.execution
    if execution is not None:
        execution = replace(execution, revision=1)
    return _New(
        stored=Submitted(job=job, execution=execution),
        job=(job.id, job.modified_at, job.due_at, job.revision, encode_job(job)),
        execution=None if execution is None else execution_values(execution),
    )


def _store_new(connection: sqlite3.Connection, calls: Sequence[Sequence[_New]]) -> _Results:
    """Store what is not stored. Raises _Exists."""
    by_task: dict[str, list[Job]] = {}
    for call in calls:
        for new in call:
            by_task.setdefault(new.stored.job.task_id, []).append(new.stored.job)
    tasks = {task: touch_task(connection, its) for task, its in by_task.items()}
    numbers = count(max((task.last_job for task in tasks.values()), default=0) + 1)
    jobs: list[Row] = []
    executions: list[Row] = []
    for number, new in zip(numbers, chain.from_iterable(calls), strict=False):
        jobs.append((number, tasks[new.stored.job.task_id].number, *new.job))
        if new.execution is not None:
            executions.append((number, *new.execution))
    for statement, rows in ((INSERT_NUMBERED_JOB, jobs), (INSERT_EXECUTION, executions)):
        if insert_rows(connection, statement, rows) != len(rows):
            raise _Exists
    return [[new.stored for new in call] for call in calls]
