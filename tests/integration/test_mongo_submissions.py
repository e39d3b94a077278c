"""Many submissions in one call of the MongoDB storage: several at a time, answered in order, and all or none."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from fastlane_core.builtin.mongo import submitting
from fastlane_core.builtin.mongo.server import MongoServer
from fastlane_core.builtin.mongo.storage import MongoStorage
from fastlane_core.contracts.storage import Submission
from fastlane_core.errors import RevisionConflict
from fastlane_core.models import Execution, Job
from fastlane_core.testing.examples import a_job, a_submission

pytestmark = pytest.mark.services

#: Submissions that are accepted at a time at most: more writes at once than a small server can take are of no use.
MOST = 16


@pytest.fixture
async def storage(mongo_url: str) -> AsyncIterator[MongoStorage]:
    server = MongoServer(url=mongo_url, database=f"fastlane_{uuid.uuid4().hex}")
    made = MongoStorage(server, timeout=120.0)
    await made.open()
    yield made
    await made.close()
    client = server.client()
    await client.drop_database(server.database)
    await client.close()


async def test_many_are_accepted_side_by_side_within_bounds_and_answered_in_order(
    storage: MongoStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way = most = 0
    together = asyncio.Event()
    accept = submitting._accept

    async def counted(db: submitting.Collections, job: Job, execution: Execution | None) -> submitting._Accepted:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        if under_way == MOST:
            together.set()
        await together.wait()
        try:
            return await accept(db, job, execution)
        finally:
            under_way -= 1

    monkeypatch.setattr(submitting, "_accept", counted)
    submissions = [a_submission(f"task {number % 5}") for number in range(3 * MOST)]

    async with asyncio.timeout(120.0):
        answers = await storage.submit(submissions)

    assert most == MOST
    assert [each.job.id for each in answers] == [each.job.id for each in submissions]
    assert [task.id for task in await storage.list_tasks(start=0, limit=10)] == [f"task {each}" for each in range(5)]
    for answer in answers:
        assert answer.execution is not None
        assert await storage.get_execution(answer.execution.id) == answer.execution


async def test_of_those_with_one_key_the_first_is_stored(storage: MongoStorage) -> None:
    submissions = [a_submission(idempotency_key=f"{number % 4}") for number in range(12)]

    answers = await storage.submit(submissions)

    assert [each.repeated for each in answers] == [False] * 4 + [True] * 8
    assert [each.job.id for each in answers] == [each.job.id for each in submissions[:4]] * 3
    assert await storage.count_jobs() == 4


async def test_a_conflict_that_is_met_half_way_takes_all_back(
    storage: MongoStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def found_nothing(db: submitting.Collections, submissions: object) -> None:
        """As where the other one comes between."""

    monkeypatch.setattr(submitting, "_refuse_conflicts", found_nothing)
    submissions = [a_submission() for _ in range(2 * MOST)]
    submissions[MOST + 3] = Submission(job=replace(a_job(), revision=7), execution=None)

    with pytest.raises(RevisionConflict, match="is not stored with revision 7"):
        await storage.submit(submissions)

    assert await storage.count_jobs() == 0
    assert (await storage.list_unfinished(cursor=None, limit=100)).items == []
    task = await storage.get_task("task")
    assert task is None or task.jobs_count == 0
