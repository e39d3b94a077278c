"""Writing tasks, jobs and executions, each inside the transaction that the caller has begun."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from fastlane_core.builtin.sqlite.rows import Row, insert_rows
from fastlane_core.builtin.sqlite.task_search import index_task
from fastlane_core.contracts.records import decode_execution, decode_job, encode_execution, encode_job
from fastlane_core.contracts.storage import Submission, Submitted, ended_at
from fastlane_core.errors import NotFound, RevisionConflict
from fastlane_core.models import Execution, Failure, Job
from fastlane_core.quick_dataclass import replace

TOUCH_TASK = """
    INSERT INTO tasks (id, created_at, modified_at, jobs) VALUES (?, ?, ?, ?)
    ON CONFLICT (id) DO UPDATE SET
        modified_at = max(modified_at, excluded.modified_at), jobs = jobs + excluded.jobs
    RETURNING number, jobs, (SELECT max(number) FROM jobs)
"""
LIMIT_TASK = """
    INSERT INTO tasks (id, created_at, modified_at, jobs, concurrency) VALUES (?, ?, ?, 0, ?)
    ON CONFLICT (id) DO UPDATE SET concurrency = excluded.concurrency
    RETURNING number, jobs
"""
FIND_KEY = """
    SELECT jobs.record, idempotency_keys.execution
    FROM tasks CROSS JOIN idempotency_keys ON idempotency_keys.task = tasks.number
    CROSS JOIN jobs ON jobs.number = idempotency_keys.job
    WHERE tasks.id = ? AND idempotency_keys.key = ?
"""
INSERT_KEY = "INSERT INTO idempotency_keys VALUES (?, ?, ?, ?)"
INSERT_JOB = """
    INSERT INTO jobs (task, id, modified_at, due_at, revision, record) VALUES (?, ?, ?, ?, ?, ?)
    ON CONFLICT DO NOTHING
"""
INSERT_NUMBERED_JOB = """
    INSERT INTO jobs (number, task, id, modified_at, due_at, revision, record) VALUES (?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT DO NOTHING
"""
JOB_NUMBER = """
    SELECT jobs.number FROM tasks CROSS JOIN jobs ON jobs.task = tasks.number WHERE tasks.id = ? AND jobs.id = ?
"""
FIND_JOB = """
    SELECT jobs.number, jobs.record, jobs.executions FROM tasks CROSS JOIN jobs ON jobs.task = tasks.number
    WHERE tasks.id = ? AND jobs.id = ?
"""
UPDATE_JOB = """
    UPDATE jobs SET modified_at = ?, due_at = ?, revision = revision + 1, record = ?
    WHERE id = ? AND task = (SELECT number FROM tasks WHERE id = ?) AND revision = ?
    RETURNING number
"""
INSERT_EXECUTION = """
    INSERT INTO executions (
        job, id, created_at, revision, unfinished, owes_at, removable_at, failed_at, failed_task, record
    )
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING
"""
UPDATE_EXECUTION = """
    UPDATE executions SET
        revision = revision + 1, unfinished = ?, owes_at = ?, removable_at = ?, failed_at = ?, failed_task = ?,
        record = ?
    WHERE id = ? AND revision = ?
"""
GET_EXECUTION = "SELECT record FROM executions WHERE id = ?"

#: An execution with the values of its row, but for the number of its job.
NewExecution: TypeAlias = tuple[Execution, Row]


@dataclass(frozen=True, kw_only=True, slots=True)
class TouchedTask:
    """A task that jobs were counted in."""

    number: int
    #: Highest number of any task's jobs, before those that are counted here are stored.
    last_job: int


def submit(connection: sqlite3.Connection, submissions: Sequence[Submission]) -> Sequence[Submitted]:
    """Store all submissions. Raises RevisionConflict."""
    return [_submit_one(connection, submission.job, submission.execution) for submission in submissions]


def update_job(connection: sqlite3.Connection, job: Job) -> Job:
    """Replace the stored job of that revision. Raises RevisionConflict."""
    return _update_job(connection, job)[1]


def update_jobs(connection: sqlite3.Connection, jobs: Sequence[Job]) -> Sequence[Job | None]:
    """Replace stored jobs; None for one that is not stored with its revision."""
    return [_replaced_job(connection, job) for job in jobs]


def new_executions(executions: Sequence[Execution]) -> Sequence[NewExecution]:
    """Executions as `add_executions` takes them: encoded before the transaction, for whose end others wait."""
    return [(each, execution_values(replace(each, revision=1))) for each in executions]


def add_executions(connection: sqlite3.Connection, executions: Sequence[NewExecution]) -> None:
    """Store those that are not stored. Raises NotFound where the job is not."""
    rows: list[Row] = []
    for execution, values in executions:
        found = connection.execute(JOB_NUMBER, (execution.task_id, execution.job_id)).fetchone()
        if found is None:
            raise NotFound(f"the job {execution.job_id} of the task {execution.task_id} is not stored")
        rows.append((*found, *values))
    insert_rows(connection, INSERT_EXECUTION, rows)


def update_execution(connection: sqlite3.Connection, execution: Execution) -> Execution:
    """Replace the stored execution of that revision. Raises RevisionConflict."""
    stored = replace(execution, revision=execution.revision + 1)
    found = connection.execute(
        UPDATE_EXECUTION, (*_indexed(stored), encode_execution(stored), execution.id, execution.revision)
    )
    if not found.rowcount:
        raise RevisionConflict(f"the execution {execution.id} is not stored with revision {execution.revision}")
    return stored


def touch_task(connection: sqlite3.Connection, jobs: Sequence[Job]) -> TouchedTask:
    """Make the task that these new jobs belong to, or count them there."""
    return _touch_task(connection, jobs, new_jobs=len(jobs))


def execution_values(execution: Execution) -> Row:
    """The values of INSERT_EXECUTION, after the number of its job."""
    return (execution.id, execution.created_at, execution.revision, *_indexed(execution), encode_execution(execution))


def limit_task(connection: sqlite3.Connection, task_id: str, concurrency: int | None, now: float) -> None:
    """Store how many executions of the task may hold a slot at a time."""
    rows = connection.execute(LIMIT_TASK, (task_id, now, now, concurrency)).fetchall()
    number, jobs = rows[0]
    if not jobs:
        index_task(connection, number, task_id)


def find_execution(connection: sqlite3.Connection, execution_id: str) -> Execution | None:
    """The execution, or None."""
    row = connection.execute(GET_EXECUTION, (execution_id,)).fetchone()
    return None if row is None else decode_execution(row[0])


def _submit_one(connection: sqlite3.Connection, job: Job, execution: Execution | None) -> Submitted:
    key = job.idempotency_key if not job.revision else None
    if key is not None:
        earlier = connection.execute(FIND_KEY, (job.task_id, key)).fetchone()
        if earlier is not None:
            record, execution_id = earlier
            return Submitted(
                job=decode_job(record),
                execution=None if execution_id is None else find_execution(connection, execution_id),
                repeated=True,
            )
    if job.revision:
        number, stored = _update_job(connection, job)
        task = _touch_task(connection, [job], new_jobs=0).number
    else:
        task = touch_task(connection, [job]).number
        number, stored = _insert_job(connection, job, task)
    if execution is not None:
        execution = _insert_execution(connection, execution, number)
    if key is not None:
        connection.execute(INSERT_KEY, (task, key, number, execution.id if execution else None))
    return Submitted(job=stored, execution=execution)


def _touch_task(connection: sqlite3.Connection, jobs: Sequence[Job], *, new_jobs: int) -> TouchedTask:
    task_id, created_at = jobs[0].task_id, jobs[0].created_at
    modified_at = max(job.modified_at for job in jobs)
    values = (task_id, created_at, modified_at, new_jobs)
    number, count, last_job = connection.execute(TOUCH_TASK, values).fetchall()[0]
    if new_jobs and count == new_jobs:
        index_task(connection, number, task_id)
    return TouchedTask(number=number, last_job=last_job or 0)


def _insert_job(connection: sqlite3.Connection, job: Job, task: int) -> tuple[int, Job]:
    stored = replace(job, revision=1)
    inserted = connection.execute(
        INSERT_JOB, (task, job.id, job.modified_at, job.due_at, stored.revision, encode_job(stored))
    )
    if not inserted.rowcount or inserted.lastrowid is None:
        raise RevisionConflict(f"the job {job.id} of the task {job.task_id} is stored already")
    return inserted.lastrowid, stored


def _update_job(connection: sqlite3.Connection, job: Job) -> tuple[int, Job]:
    stored = replace(job, revision=job.revision + 1)
    found = connection.execute(
        UPDATE_JOB, (job.modified_at, job.due_at, encode_job(stored), job.id, job.task_id, job.revision)
    ).fetchall()
    if not found:
        raise RevisionConflict(f"the job {job.id} of the task {job.task_id} is not stored with revision {job.revision}")
    return int(found[0][0]), stored


def _replaced_job(connection: sqlite3.Connection, job: Job) -> Job | None:
    try:
        return _update_job(connection, job)[1]
    except RevisionConflict:
        return None


def _insert_execution(connection: sqlite3.Connection, execution: Execution, job: int) -> Execution | None:
    stored = replace(execution, revision=1)
    inserted = connection.execute(INSERT_EXECUTION, (job, *execution_values(stored)))
    return stored if inserted.rowcount else find_execution(connection, execution.id)


def _indexed(execution: Execution) -> tuple[int | None, float | None, float | None, float | None, str | None]:
    """Whether it is unfinished, when it owes something, since when it may go, when and in which task it failed."""
    if not execution.status.is_final:
        return 1, execution.owes_at, None, None, None
    end = ended_at(execution)
    failed = (end, execution.task_id) if execution.failure is Failure.OPEN else (None, None)
    if execution.owes_at is not None:
        return None, execution.owes_at, None, *failed
    return None, None, end, *failed
