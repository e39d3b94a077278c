"""What the SQLite storage promises beyond the contract."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastlane_core.builtin.sqlite import submitting
from fastlane_core.builtin.sqlite.database import Session
from fastlane_core.builtin.sqlite.plugin import (
    SqliteSettings,
    fastlane_queues,
    fastlane_settings,
    fastlane_storages,
)
from fastlane_core.builtin.sqlite.storage import SqliteStorage
from fastlane_core.builtin.sqlite.storage_logs import REMOVED_AT_ONCE
from fastlane_core.contracts.storage import Submission
from fastlane_core.errors import InvalidInput, NotFound, RevisionConflict, StorageUnavailable
from fastlane_core.hookspecs import PluginContext, Section
from fastlane_core.models import Status
from fastlane_core.testing.examples import a_chunk, a_job, a_submission, an_execution
from fastlane_core.testing.storage_fixtures import store_job


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "fastlane.db"


@pytest.fixture
async def storage(path: Path) -> AsyncIterator[SqliteStorage]:
    storage = SqliteStorage(path)
    await storage.open()
    yield storage
    await storage.close()


def count_rows(path: Path, table: str) -> int:
    """Committed rows."""
    with closing(sqlite3.connect(path)) as connection:
        (count,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    return int(count)


async def test_a_value_made_anew_has_no_revision_of_the_old_one(storage: SqliteStorage) -> None:
    old = await storage.put_state("scope", "key", {"n": 1}, revision=0)
    await storage.delete_state("scope", "key")
    await storage.put_state("scope", "key", {"n": 2}, revision=0)

    with pytest.raises(RevisionConflict):
        await storage.put_state("scope", "key", {"n": 3}, revision=old)


async def test_executions_need_their_job_and_logs_their_execution(storage: SqliteStorage) -> None:
    with pytest.raises(NotFound, match="job nobody"):
        await storage.add_executions([an_execution(a_job(job_id="nobody"))])
    with pytest.raises(NotFound, match="execution nobody"):
        await storage.append_log("nobody", [a_chunk(1)])


async def test_a_search_for_very_many_words_is_refused(storage: SqliteStorage) -> None:
    with pytest.raises(InvalidInput, match="at most 32 words"):
        await storage.search_tasks(" ".join(f"{number:03}" for number in range(33)), start=0, limit=1)


async def test_removal_leaves_no_chunk_behind(storage: SqliteStorage, path: Path) -> None:
    job = await store_job(storage, a_job())
    await storage.add_executions([an_execution(job, f"{n}", status=Status.DONE, finished_at=1.0) for n in range(5)])
    for number in range(5):
        await storage.append_log(f"{number}", [a_chunk(each) for each in range(1, REMOVED_AT_ONCE + number)])

    assert await storage.remove_finished(before=2.0, limit=10) == 5

    assert [count_rows(path, table) for table in ("executions", "log_chunks", "removed_logs")] == [0, 0, 0]


async def test_a_removal_cut_short_is_ended_by_the_next(storage: SqliteStorage, path: Path) -> None:
    job = await store_job(storage, a_job())
    await storage.add_executions([an_execution(job, "gone", status=Status.DONE, finished_at=1.0)])
    await storage.append_log("gone", [a_chunk(each) for each in range(1, 200)])
    with closing(sqlite3.connect(path)) as connection, connection:
        # As far as a crash behind the first commit of a removal leaves it.
        connection.execute("DELETE FROM executions")
    assert count_rows(path, "log_chunks") == 199
    await storage.add_executions([an_execution(job, "gone")])
    await storage.append_log("gone", [a_chunk(1, b"new")])

    assert await storage.remove_finished(before=0.0, limit=10) == 0

    assert count_rows(path, "log_chunks") == 1
    (chunk,) = await storage.read_log("gone", after=0, stream=None, max_bytes=10)
    assert chunk.data == b"new"


async def test_the_plugin_makes_storage_and_queue_from_the_settings(path: Path) -> None:
    class Settings:
        def section(self, model: type[Section]) -> Section:
            return model.model_validate({"sqlite_path": str(path), "sqlite_readers": 1})

    context = PluginContext(settings=Settings(), deployment_id="", api_bind=None, clock=lambda: 5.0)
    (section,) = fastlane_settings()
    (storages,), (queues,) = fastlane_storages(), fastlane_queues()
    storage, queue = storages.create(context), queues.create(context)
    await storage.open()
    await queue.open()
    try:
        assert str(path) in await storage.health()
        assert str(path) in await queue.health()
    finally:
        await queue.close()
        await storage.close()

    assert (storages.name, queues.name, section.model) == ("sqlite", "sqlite", SqliteSettings)
    assert all(field.description and not field.is_required() for field in SqliteSettings.model_fields.values())


async def test_of_submissions_that_come_together_only_the_refused_one_fails(storage: SqliteStorage) -> None:
    stored = await store_job(storage, a_job())
    known = a_submission(idempotency_key="known")
    await storage.submit([known])
    fresh = [a_submission(f"task {number % 3}") for number in range(250)]
    again, repeated = Submission(job=replace(stored, revision=0), execution=None), a_submission(idempotency_key="known")

    calls = [*([each] for each in fresh[:200]), [again], [repeated], fresh[200:]]
    results = await asyncio.gather(*map(storage.submit, calls), return_exceptions=True)

    assert isinstance(results[200], RevisionConflict)
    ((repeat,),) = [results[201]] if isinstance(results[201], list) else []
    assert repeat.repeated
    assert repeat.job.id == known.job.id
    answers = [answer for result in (*results[:200], results[202]) if isinstance(result, list) for answer in result]
    assert [answer.job.id for answer in answers] == [each.job.id for each in fresh]
    assert await storage.count_jobs() == 252
    for answer in answers:
        assert await storage.get_job(answer.job.task_id, answer.job.id) == answer.job
        assert await storage.get_execution(answer.execution.id) == answer.execution


async def test_new_jobs_that_come_together_are_counted_and_numbered(storage: SqliteStorage) -> None:
    fresh = [a_submission(f"task {number % 3}") for number in range(250)]

    await asyncio.gather(*(storage.submit([each]) for each in fresh))

    assert await storage.count_jobs() == 250
    tasks = await storage.list_tasks(start=0, limit=10)
    assert {task.id: task.jobs_count for task in tasks} == {"task 0": 84, "task 1": 83, "task 2": 83}
    for each in fresh:
        assert await storage.count_executions(each.job.id, task_id=each.job.task_id) == 1


async def test_submissions_that_come_while_others_are_stored_share_a_write(
    storage: SqliteStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, gate = asyncio.Event(), asyncio.Event()
    writes = 0
    write = Session.write

    async def held_up(session: Session, operation: Any, *, durable: bool = True) -> Any:
        nonlocal writes
        writes += 1
        begun.set()
        await gate.wait()
        return await write(session, operation, durable=durable)

    monkeypatch.setattr(Session, "write", held_up)
    monkeypatch.setattr(submitting, "_TOGETHER", 15)
    monkeypatch.setattr(submitting, "_MAX_WAITING", 21)
    calls = [asyncio.create_task(storage.submit([a_submission()]))]
    await begun.wait()
    for _ in range(20):
        calls.append(asyncio.create_task(storage.submit([a_submission()])))
        # Each in a turn of its own, and more of them than are waited for.
        for _ in range(3):
            await asyncio.sleep(0)
    with pytest.raises(StorageUnavailable, match="21 submissions wait for SQLite"):
        await storage.submit([a_submission()])
    gate.set()
    answers = await asyncio.gather(*calls)

    # The first, 15 at once, and the rest.
    assert writes == 3
    for (submitted,) in answers:
        assert await storage.get_job(submitted.job.task_id, submitted.job.id) == submitted.job
