"""Tests of a storage's jobs that are due at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from fastlane_core.contracts.storage import Storage, Submission
from fastlane_core.errors import InvalidInput
from fastlane_core.models import Job
from fastlane_core.testing.examples import a_job
from fastlane_core.testing.storage_fixtures import StorageFixtures, all_pages, store_job


class StorageScheduleTests(StorageFixtures):
    """Due jobs in their order, and many changed by one call."""

    async def test_due_jobs_are_listed_earliest_first_up_to_the_time_asked_for(self, storage: Storage) -> None:
        jobs = [await store_job(storage, a_job(due_at=at)) for at in (30.5, 10.0, 20.0, 40.0)]
        await store_job(storage, a_job())

        listed = await storage.list_due_jobs(until=30.5, limit=10)

        assert listed == [jobs[1], jobs[2], jobs[0]]
        assert await storage.list_due_jobs(until=30.4, limit=10) == [jobs[1], jobs[2]]
        assert await storage.list_due_jobs(until=99.0, limit=1) == [jobs[1]]
        assert list(await storage.list_due_jobs(until=9.9, limit=10)) == []

    async def test_the_next_due_job_is_known(self, storage: Storage) -> None:
        await store_job(storage, a_job())
        assert await storage.next_due_job() is None

        later = await store_job(storage, a_job(due_at=20.25))
        sooner = await store_job(storage, a_job(due_at=10.5))

        assert await storage.next_due_job() == 10.5
        await storage.put_job(replace(sooner, due_at=None))
        assert await storage.next_due_job() == 20.25
        await storage.put_job(replace(later, due_at=20.5))
        assert await storage.next_due_job() == 20.5

    @pytest.mark.parametrize("due_at", [None, 50.0])
    async def test_a_job_moves_with_its_due_time_however_it_is_written(
        self, storage: Storage, due_at: float | None
    ) -> None:
        jobs = [await store_job(storage, a_job(due_at=10.0)) for _ in range(3)]

        await storage.put_job(replace(jobs[0], due_at=due_at))
        await storage.put_jobs([replace(jobs[1], due_at=due_at)])
        await storage.submit([Submission(job=replace(jobs[2], due_at=due_at), execution=None)])

        assert list(await storage.list_due_jobs(until=49.0, limit=10)) == []
        found = {each.id for each in await storage.list_due_jobs(until=50.0, limit=10)}
        assert found == (set() if due_at is None else {each.id for each in jobs})

    async def test_scheduled_jobs_come_in_pages_earliest_first(self, storage: Storage) -> None:
        # Some at the same time.
        jobs = [await store_job(storage, a_job(due_at=float(number // 3) + 1)) for number in range(10)]
        await store_job(storage, a_job())

        listed = await all_pages(lambda cursor: storage.list_scheduled_jobs(cursor=cursor, limit=2))

        assert [each.due_at for each in listed] == sorted(float(number // 3) + 1 for number in range(10))
        assert {each.id for each in listed} == {each.id for each in jobs}
        assert len(listed) == await storage.count_scheduled_jobs() == len(jobs)
        with pytest.raises(InvalidInput):
            await storage.list_scheduled_jobs(cursor="nonsense", limit=2)

    async def test_many_jobs_are_replaced_in_order_but_those_that_have_changed(self, storage: Storage) -> None:
        jobs = [await store_job(storage, a_job(f"task {number % 3}")) for number in range(120)]
        changed = {jobs[7].id, jobs[100].id}
        for job in jobs:
            if job.id in changed:
                await storage.put_job(replace(job, retries=1))

        answers = await storage.put_jobs([replace(job, due_at=5.0) for job in [*jobs, a_job(job_id="unknown")]])

        assert answers == [
            *(None if job.id in changed else replace(job, due_at=5.0, revision=2) for job in jobs),
            None,
        ]
        assert [await storage.get_job(each.task_id, each.id) for each in answers if each] == [
            each for each in answers if each
        ]
        kept = [await storage.get_job(job.task_id, job.id) for job in jobs if job.id in changed]
        assert [(each.retries, each.due_at) for each in kept if each] == [(1, None)] * 2
        assert list(await storage.put_jobs([])) == []

    async def test_of_clients_that_replace_the_same_jobs_one_wins_each(self, clients: Sequence[Storage]) -> None:
        jobs = [await store_job(clients[0], a_job()) for _ in range(10)]

        async def attempt(number: int) -> Sequence[Job | None]:
            return await clients[number].put_jobs([replace(job, due_at=float(number + 1)) for job in jobs])

        answers = await asyncio.gather(*(attempt(number) for number in range(20)))

        for position, job in enumerate(jobs):
            (winner,) = [each[position] for each in answers if each[position] is not None]
            assert await clients[0].get_job(job.task_id, job.id) == winner
