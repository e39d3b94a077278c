"""A process that dies at any of its writes to MongoDB leaves nothing half done, nothing lost and nothing twice."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace

import pytest

from fastlane_core.builtin.mongo import retention
from fastlane_core.builtin.mongo.documents import job_key
from fastlane_core.builtin.mongo.server import MongoServer
from fastlane_core.builtin.mongo.storage import MongoStorage
from fastlane_core.contracts.storage import Submission
from fastlane_core.errors import StorageUnavailable
from fastlane_core.models import Execution, Job, Status
from fastlane_core.testing.examples import a_chunk, a_job, a_submission, an_execution
from fastlane_core.testing.storage_fixtures import store_execution, store_job
from tests.integration.mongo_faults import MortalConnection

pytestmark = [
    pytest.mark.services,
    # The driver leaves sockets to the garbage collector that were being connected when it was closed.
    pytest.mark.filterwarnings("ignore:.*socket.socket:pytest.PytestUnraisableExceptionWarning"),
]

Operation = Callable[[MongoStorage], Awaitable[object]]
#: More writes than any operation here makes.
_MOST_WRITES = 40
#: Seconds in which what a process sent just before its death gets to the server.
_ARRIVAL_SECONDS = 1.0


class Survivors:
    """Processes that live on beside those that die."""

    def __init__(self, url: str) -> None:
        self.server = MongoServer(url=url, database=f"fastlane_{uuid.uuid4().hex}")
        self.now = 0.0
        self.storage = MongoStorage(self.server, timeout=30.0, clock=lambda: self.now)

    async def dies(self, operation: Operation, *, last: int, arrives: bool) -> bool:
        """Run it in a process that dies at its `last`-th write; False if it made fewer."""
        host, _, port = self.server.address.partition(":")
        with MortalConnection((host, int(port)), last=last, arrives=arrives) as connection:
            url = f"mongodb://127.0.0.1:{connection.port}/?directConnection=true&retryWrites=false"
            storage = MongoStorage(MongoServer(url=url, database=self.server.database), timeout=30.0)
            # What opening writes is not what is looked at here.
            connection.last = 10_000
            await storage.open()
            connection.last = connection.writes + last
            operating = asyncio.ensure_future(operation(storage))
            try:
                while not operating.done() and not connection.is_dead:
                    await asyncio.wait([operating], timeout=0.01)
                # What has left the dead may still be on its way.
                await asyncio.wait([operating], timeout=_ARRIVAL_SECONDS)
                operating.cancel()
                with contextlib.suppress(StorageUnavailable, asyncio.CancelledError):
                    await operating
                return connection.is_dead
            finally:
                await storage.close()

    async def heal(self) -> None:
        """What reconcilers do, an hour later."""
        for _ in range(2):
            await self.storage.list_unfinished(cursor=None, limit=1)
            self.now += 3600

    async def nothing_is_left_to_settle(self) -> bool:
        """Whether every document is as if nobody had died."""
        with self.storage._database.call() as db:
            return (
                await db.tasks.quick.find_one({"unsettled": {"$ne": 0}}) is None
                and await db.jobs.quick.find_one({"unsettled": {"$ne": 0}}) is None
                and await db.tasks.quick.find_one({"pending": {"$ne": {}}}) is None
                and await db.jobs.quick.find_one({"pending": {"$ne": {}}}) is None
            )

    async def executions(self, job: Job) -> list[Execution]:
        """All of the job's, whose count must agree."""
        page = await self.storage.list_executions(job.id, task_id=job.task_id, cursor=None, limit=100)
        assert await self.storage.count_executions(job.id, task_id=job.task_id) == len(page.items)
        return list(page.items)


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    yield
    gc.collect()


@pytest.fixture
async def survivors(mongo_url: str) -> AsyncIterator[Survivors]:
    made = Survivors(mongo_url)
    await made.storage.open()
    yield made
    client = made.server.client()
    await client.drop_database(made.server.database)
    await client.close()
    await made.storage.close()


def at_every_write() -> list[tuple[int, bool]]:
    return [(last, arrives) for last in range(1, _MOST_WRITES) for arrives in (False, True)]


async def each_death(operation: Callable[[int, bool], Awaitable[bool]]) -> int:
    """Run it for every write until there are no more; how many died."""
    for died, (last, arrives) in enumerate(at_every_write()):
        if not await operation(last, arrives):
            return died
    raise AssertionError("it never came to an end")


@pytest.mark.parametrize("key", [None, "key"])
async def test_a_submission_is_stored_whole_or_not_at_all(survivors: Survivors, key: str | None) -> None:
    storage = survivors.storage

    async def one(last: int, arrives: bool) -> bool:
        submission = a_submission(f"task {last} {arrives}", idempotency_key=key)
        job, execution = submission.job, submission.execution
        assert execution is not None
        died = await survivors.dies(lambda mortal: mortal.submit([submission]), last=last, arrives=arrives)
        await survivors.heal()

        stored = await storage.get_job(job.task_id, job.id)
        assert stored in (None, replace(job, revision=1))
        jobs = 0 if stored is None else 1
        task = await storage.get_task(job.task_id)
        assert (0 if task is None else task.jobs_count) == jobs
        assert [each.id for each in await survivors.executions(job)] == [execution.id] * jobs
        assert await storage.get_execution(execution.id) == (replace(execution, revision=1) if jobs else None)
        assert await survivors.nothing_is_left_to_settle()
        return died

    assert await each_death(one) >= (14 if key else 10)


async def test_a_repeat_with_the_key_of_one_that_died_makes_one_job(survivors: Survivors) -> None:
    storage = survivors.storage

    async def one(last: int, arrives: bool) -> bool:
        task = f"task {last} {arrives}"
        first = a_submission(task, idempotency_key="key")
        died = await survivors.dies(lambda mortal: mortal.submit([first]), last=last, arrives=arrives)
        before = await storage.get_job(task, first.job.id)

        repeats = [storage.submit([a_submission(task, idempotency_key="key")]) for _ in range(3)]
        answers = [answer for (answer,) in await asyncio.gather(*repeats)]

        assert sum(not each.repeated for each in answers) == (0 if before else 1)
        (job_id,) = {each.job.id for each in answers}
        assert before is None or job_id == before.id
        await survivors.heal()
        page = await storage.list_jobs(task, cursor=None, limit=10)
        assert [job.id for job in page.items] == [job_id]
        (execution,) = await survivors.executions(page.items[0])
        assert {each.execution.id for each in answers if each.execution} == {execution.id}
        found = await storage.get_task(task)
        assert found is not None
        assert found.jobs_count == 1
        assert await survivors.nothing_is_left_to_settle()
        return died

    assert await each_death(one) >= 14


async def test_a_replaced_job_comes_with_its_execution_or_is_as_it_was(survivors: Survivors) -> None:
    storage = survivors.storage

    async def one(last: int, arrives: bool) -> bool:
        job = await store_job(storage, a_job())
        execution = an_execution(job)
        changed = replace(job, retries=5, modified_at=job.modified_at + 1)
        submission = Submission(job=changed, execution=execution)
        died = await survivors.dies(lambda mortal: mortal.submit([submission]), last=last, arrives=arrives)
        await survivors.heal()

        stored = await storage.get_job(job.task_id, job.id)
        assert stored in (job, replace(changed, revision=2))
        assert [each.id for each in await survivors.executions(job)] == ([] if stored == job else [execution.id])
        assert await survivors.nothing_is_left_to_settle()
        return died

    assert await each_death(one) >= 6


async def test_added_executions_are_counted_once(survivors: Survivors) -> None:
    storage = survivors.storage
    job = await store_job(storage, a_job())
    there = await store_execution(storage, an_execution(job))
    known = {there.id}

    async def one(last: int, arrives: bool) -> bool:
        fresh = [an_execution(job) for _ in range(3)]
        executions = [replace(there, revision=0), *fresh]
        died = await survivors.dies(lambda mortal: mortal.add_executions(executions), last=last, arrives=arrives)
        await survivors.heal()

        stored = {each.id for each in await survivors.executions(job)}
        assert stored in (known, known | {each.id for each in fresh})
        known.update(stored)
        assert await storage.get_execution(there.id) == there
        assert await survivors.nothing_is_left_to_settle()
        # Done anew, as after an error, it makes nothing twice.
        await storage.add_executions(executions)
        known.update(each.id for each in fresh)
        assert {each.id for each in await survivors.executions(job)} == known
        return died

    assert await each_death(one) >= 6


async def test_a_removal_takes_the_whole_execution_or_nothing(survivors: Survivors) -> None:
    storage = survivors.storage
    job = await store_job(storage, a_job())

    async def one(last: int, arrives: bool) -> bool:
        old = [an_execution(job, status=Status.DONE, finished_at=1.0)]
        await storage.add_executions(old)
        for each in old:
            await storage.append_log(each.id, [a_chunk(1, b"x" * 100_000)])
        died = await survivors.dies(
            lambda mortal: mortal.remove_finished(before=2.0, limit=10), last=last, arrives=arrives
        )
        await survivors.heal()

        left = {each.id for each in await survivors.executions(job)}
        assert left <= {each.id for each in old}
        assert await survivors.nothing_is_left_to_settle()
        assert await storage.remove_finished(before=2.0, limit=10) == len(left)
        assert await survivors.executions(job) == []
        with storage._database.call() as db:
            assert await db.logs.quick.find_one({}) is None
            assert await db.log_parts.quick.find_one({}) is None
        return died

    assert await each_death(one) >= 8


async def test_executions_whose_job_is_gone_are_removed_and_keep_nothing_waiting(survivors: Survivors) -> None:
    storage = survivors.storage
    lost, kept = await store_job(storage, a_job()), await store_job(storage, a_job())
    old = [an_execution(job, status=Status.DONE, finished_at=1.0) for job in (lost, lost, kept)]
    await storage.add_executions(old)
    await storage.append_log(old[0].id, [a_chunk(1, b"x")])
    with storage._database.call() as db:
        # As after a restore of only some collections, or by hand.
        await db.jobs.quick.delete_one({"_id": job_key(lost.task_id, lost.id)})

    assert await storage.remove_finished(before=2.0, limit=10) == 3

    assert await survivors.executions(kept) == []
    with storage._database.call() as db:
        assert await db.executions.quick.find_one({}) is None
        assert await db.logs.quick.find_one({}) is None


async def test_a_removal_that_gets_nowhere_ends(survivors: Survivors, monkeypatch: pytest.MonkeyPatch) -> None:
    async def not_removed(database: object, execution: object) -> bool:
        return False

    storage = survivors.storage
    job = await store_job(storage, a_job())
    await storage.add_executions([an_execution(job, status=Status.DONE, finished_at=1.0)])
    monkeypatch.setattr(retention, "_remove", not_removed)

    assert await storage.remove_finished(before=2.0, limit=10) == 0


@pytest.mark.parametrize("size", [100, 3_000_000])
async def test_an_append_is_seen_whole_or_not_at_all(survivors: Survivors, size: int) -> None:
    storage = survivors.storage
    job = await store_job(storage, a_job())

    async def one(last: int, arrives: bool) -> bool:
        execution = await store_execution(storage, an_execution(job))
        await storage.append_log(execution.id, [a_chunk(1, b"before")])
        chunks = [a_chunk(number, bytes([number]) * (size // 12)) for number in range(2, 14)]
        died = await survivors.dies(lambda mortal: mortal.append_log(execution.id, chunks), last=last, arrives=arrives)

        seen = await storage.read_log(execution.id, after=0, stream=None, max_bytes=2 * size)
        assert [each.sequence for each in seen] in ([1], list(range(1, 14)))
        if len(seen) == 1:
            await storage.append_log(execution.id, chunks)
            seen = await storage.read_log(execution.id, after=0, stream=None, max_bytes=2 * size)
        assert list(seen[1:]) == chunks
        return died

    assert await each_death(one) >= 2
