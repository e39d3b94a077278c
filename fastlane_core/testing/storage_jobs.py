"""Tests of a storage's submissions and jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from fastlane_core.contracts.storage import Storage, Submission
from fastlane_core.errors import InvalidInput, RevisionConflict
from fastlane_core.models import Execution, Job, Status
from fastlane_core.testing.examples import (
    ODD_TEXTS,
    a_full_execution,
    a_full_job,
    a_job,
    a_submission,
    an_execution,
)
from fastlane_core.testing.storage_fixtures import (
    CLIENTS,
    StorageFixtures,
    all_pages,
    count_winners,
    store_job,
)


class StorageJobTests(StorageFixtures):
    """Submissions, idempotency keys, compare-and-set of jobs, and their pages."""

    async def test_a_submission_stores_job_and_execution(self, storage: Storage) -> None:
        job = a_job()
        execution = an_execution(job)

        (submitted,) = await storage.submit([Submission(job=job, execution=execution)])

        assert not submitted.repeated
        assert submitted.job == replace(job, revision=1)
        assert submitted.execution == replace(execution, revision=1)
        assert await storage.get_job("task", job.id) == submitted.job
        assert await storage.get_execution(execution.id) == submitted.execution
        assert await storage.count_executions(job.id, task_id="task") == 1

    async def test_a_submission_may_come_without_an_execution(self, storage: Storage) -> None:
        (submitted,) = await storage.submit([Submission(job=a_job(), execution=None)])

        assert submitted.execution is None
        assert await storage.count_executions(submitted.job.id, task_id="task") == 0

    async def test_no_submissions_are_no_error(self, storage: Storage) -> None:
        assert list(await storage.submit([])) == []

    async def test_submissions_are_answered_in_order(self, storage: Storage) -> None:
        submissions = [a_submission(f"task {number % 3}") for number in range(300)]

        submitted = await storage.submit(submissions)

        assert [each.job.id for each in submitted] == [each.job.id for each in submissions]
        assert await storage.count_jobs() == 300

    @pytest.mark.parametrize("text", ODD_TEXTS)
    async def test_every_field_comes_back_as_it_was(self, storage: Storage, text: str) -> None:
        job = a_full_job(text)
        execution = a_full_execution(job, text)

        (submitted,) = await storage.submit([Submission(job=job, execution=execution)])

        assert (submitted.job, submitted.execution) == (replace(job, revision=1), replace(execution, revision=1))
        assert await storage.get_job("task", job.id) == submitted.job
        assert await storage.get_execution(execution.id) == submitted.execution
        changed = replace(submitted.job, metadata={"changed": text})
        assert await storage.put_job(changed) == replace(changed, revision=2)
        assert await storage.get_job("task", job.id) == replace(changed, revision=2)

    @pytest.mark.parametrize("text", ODD_TEXTS)
    async def test_ids_may_be_any_text(self, storage: Storage, text: str) -> None:
        job = a_job(job_id=text)
        await storage.submit([Submission(job=job, execution=an_execution(job, text))])

        found = await storage.get_job("task", text)
        assert found is not None
        assert found.id == text
        (execution,) = (await storage.list_executions(text, task_id="task", cursor=None, limit=5)).items
        assert execution.id == text
        assert await storage.get_execution(text) == execution

    async def test_a_big_record_comes_back_as_it_was(self, storage: Storage) -> None:
        job = replace(a_job(), metadata={"big": "\u00e4\x00" * 300_000})

        stored = await store_job(storage, job)

        assert await storage.get_job("task", job.id) == stored == replace(job, revision=1)

    async def test_the_same_job_id_may_exist_under_two_tasks(self, storage: Storage) -> None:
        here = await store_job(storage, a_job("here", "same"))
        there = await store_job(storage, a_job("there", "same"))

        assert await storage.get_job("here", "same") == here
        assert await storage.get_job("there", "same") == there
        assert await storage.get_job("elsewhere", "same") is None
        assert await storage.get_job("here", "other") is None

    # Conflicts

    async def test_a_job_that_exists_is_not_added_again(self, storage: Storage, job: Job) -> None:
        fresh = a_submission()
        assert fresh.execution is not None

        with pytest.raises(RevisionConflict):
            await storage.submit([fresh, Submission(job=replace(job, revision=0, retries=5), execution=None)])

        assert await storage.get_job("task", fresh.job.id) is None
        assert await storage.get_execution(fresh.execution.id) is None
        assert await storage.get_job("task", job.id) == job
        task = await storage.get_task("task")
        assert task is not None
        assert (task.jobs_count, await storage.count_jobs()) == (1, 1)

    async def test_a_submission_replaces_the_job_of_its_revision(self, storage: Storage, job: Job) -> None:
        execution = an_execution(job)

        (submitted,) = await storage.submit([Submission(job=replace(job, retries=5), execution=execution)])

        assert submitted.job == replace(job, retries=5, revision=2)
        assert await storage.get_job("task", job.id) == submitted.job
        assert await storage.get_execution(execution.id) == replace(execution, revision=1)
        assert await storage.count_jobs() == 1

    async def test_a_replaced_job_keeps_its_key_and_repeating_its_submission_gives_it_back(
        self, storage: Storage
    ) -> None:
        submission = a_submission(idempotency_key="key")
        (first,) = await storage.submit([submission])
        another = an_execution(first.job)

        (replaced,) = await storage.submit([Submission(job=replace(first.job, retries=5), execution=another)])
        (again,) = await storage.submit([a_submission(idempotency_key="key")])

        assert (replaced.repeated, replaced.job) == (False, replace(first.job, retries=5, revision=2))
        assert replaced.execution == replace(another, revision=1)
        assert (again.repeated, again.job, again.execution) == (True, replaced.job, first.execution)

    async def test_a_submission_for_a_changed_job_stores_nothing(self, storage: Storage, job: Job) -> None:
        changed = await storage.put_job(replace(job, retries=1))
        fresh, execution = a_submission(), an_execution(job)

        with pytest.raises(RevisionConflict):
            await storage.submit([fresh, Submission(job=replace(job, retries=5), execution=execution)])

        assert await storage.get_job("task", job.id) == changed
        assert await storage.get_job("task", fresh.job.id) is None
        assert await storage.get_execution(execution.id) is None

    async def test_one_of_many_that_add_the_same_job_wins(self, storage: Storage, clients: Sequence[Storage]) -> None:
        job = a_job()
        attempts = [
            client.submit([Submission(job=replace(job, retries=number), execution=an_execution(job))])
            for number, client in enumerate(clients)
        ]

        assert await count_winners(attempts) == 1
        assert await storage.count_jobs() == 1
        assert await storage.count_executions(job.id, task_id="task") == 1

    # Idempotency keys

    async def test_a_known_key_gives_the_earlier_submission_back(self, storage: Storage) -> None:
        (first,) = await storage.submit([a_submission(idempotency_key="key")])

        (again,) = await storage.submit([a_submission(idempotency_key="key")])

        assert again.repeated
        assert (again.job, again.execution) == (first.job, first.execution)
        assert await storage.count_jobs() == 1

    async def test_a_repeat_gives_the_records_as_they_are_now(self, storage: Storage) -> None:
        (first,) = await storage.submit([a_submission(idempotency_key="key")])
        assert first.execution is not None
        job = await storage.put_job(replace(first.job, retries=9))
        execution = await storage.put_execution(replace(first.execution, status=Status.RUNNING))
        await storage.add_executions([an_execution(job)])

        (again,) = await storage.submit([a_submission(idempotency_key="key")])

        assert (again.job, again.execution) == (job, execution)

    async def test_a_repeat_of_a_submission_without_execution_has_none(self, storage: Storage) -> None:
        await storage.submit([Submission(job=a_job(idempotency_key="key"), execution=None)])

        (again,) = await storage.submit([a_submission(idempotency_key="key")])

        assert again.repeated
        assert again.execution is None

    async def test_a_repeat_of_the_very_same_submission_is_no_conflict(self, storage: Storage) -> None:
        submission = a_submission(idempotency_key="key")
        (first,) = await storage.submit([submission])

        (again,) = await storage.submit([submission])

        assert again == replace(first, repeated=True)

    async def test_a_key_counts_within_its_task_only(self, storage: Storage) -> None:
        submitted = await storage.submit(
            [a_submission("one", idempotency_key="key"), a_submission("two", idempotency_key="key")]
        )

        assert [each.repeated for each in submitted] == [False, False]

    async def test_a_key_may_come_twice_in_one_call(self, storage: Storage) -> None:
        first, second, other = await storage.submit(
            [a_submission(idempotency_key="key"), a_submission(idempotency_key="key"), a_submission()]
        )

        assert (first.repeated, second.repeated, other.repeated) == (False, True, False)
        assert second.job == first.job
        assert await storage.count_jobs() == 2

    async def test_one_of_many_with_the_same_key_is_stored(self, storage: Storage, clients: Sequence[Storage]) -> None:
        answers = await asyncio.gather(*(client.submit([a_submission(idempotency_key="key")]) for client in clients))

        submitted = [answer[0] for answer in answers]
        assert sum(not each.repeated for each in submitted) == 1
        assert len({each.job.id for each in submitted}) == 1
        assert len({each.execution.id for each in submitted if each.execution}) == 1
        assert all(each.execution for each in submitted)
        assert await storage.count_jobs() == 1

    @pytest.mark.parametrize("text", ODD_TEXTS)
    async def test_a_key_may_be_any_text(self, storage: Storage, text: str) -> None:
        (first,) = await storage.submit([a_submission(idempotency_key=text)])
        (again,) = await storage.submit([a_submission(idempotency_key=text)])
        (other,) = await storage.submit([a_submission(idempotency_key=text + "\x00")])

        assert (first.repeated, again.repeated, other.repeated) == (False, True, False)

    # Compare-and-set

    async def test_put_job_replaces_the_revision_that_was_read(self, storage: Storage, job: Job) -> None:
        changed = await storage.put_job(replace(job, retries=2))

        assert changed == replace(job, retries=2, revision=job.revision + 1)
        with pytest.raises(RevisionConflict):
            await storage.put_job(replace(job, retries=3))
        assert await storage.get_job("task", job.id) == changed

    async def test_put_job_adds_none(self, storage: Storage) -> None:
        for revision in (0, 1):
            with pytest.raises(RevisionConflict):
                await storage.put_job(replace(a_job(), revision=revision))

        assert await storage.count_jobs() == 0

    async def test_put_job_changes_the_job_of_its_task_only(self, storage: Storage) -> None:
        here = await store_job(storage, a_job("here", "same"))
        there = await store_job(storage, a_job("there", "same"))

        await storage.put_job(replace(here, retries=2))

        assert await storage.get_job("there", "same") == there

    async def test_no_change_of_a_job_is_lost_in_a_race(
        self, storage: Storage, job: Job, clients: Sequence[Storage]
    ) -> None:
        async def add_one(client: Storage) -> None:
            while True:
                found = await client.get_job("task", job.id)
                assert found is not None
                try:
                    await client.put_job(replace(found, retries=found.retries + 1))
                except RevisionConflict:
                    continue
                return

        await asyncio.gather(*(add_one(client) for client in clients))

        final = await storage.get_job("task", job.id)
        assert final is not None
        assert (final.retries, final.revision) == (CLIENTS, job.revision + CLIENTS)

    async def test_one_write_of_each_revision_of_a_job_wins(self, job: Job, clients: Sequence[Storage]) -> None:
        attempts = [client.put_job(replace(job, retries=number)) for number, client in enumerate(clients)]

        assert await count_winners(attempts) == 1

    # Pages

    async def test_jobs_are_listed_last_modified_first(self, storage: Storage) -> None:
        times = [5.0, 1.0, 9.5, 3.0, 9.25]
        for time in times:
            await store_job(storage, a_job(created_at=0.5, modified_at=time))
        await store_job(storage, a_job("other", modified_at=7.0))

        page = await storage.list_jobs("task", cursor=None, limit=10)

        assert [job.modified_at for job in page.items] == sorted(times, reverse=True)
        assert page.cursor is None

    async def test_a_task_without_jobs_has_an_empty_page(self, storage: Storage) -> None:
        page = await storage.list_jobs("nowhere", cursor=None, limit=10)

        assert (list(page.items), page.cursor) == ([], None)

    async def test_a_modified_job_moves_to_the_front(self, storage: Storage) -> None:
        jobs = [await store_job(storage, a_job(modified_at=float(number))) for number in range(3)]
        await storage.put_job(replace(jobs[0], modified_at=100.0))

        page = await storage.list_jobs("task", cursor=None, limit=10)

        assert [job.id for job in page.items] == [jobs[0].id, jobs[2].id, jobs[1].id]

    @pytest.mark.parametrize("limit", [1, 7, 25, 100])
    async def test_pages_of_jobs_neither_repeat_nor_skip(self, storage: Storage, limit: int) -> None:
        jobs = [a_job(modified_at=float(number // 10)) for number in range(25)]
        await storage.submit([Submission(job=job, execution=None) for job in jobs])

        listed = await all_pages(lambda cursor: storage.list_jobs("task", cursor=cursor, limit=limit))

        assert len(listed) == 25
        assert {job.id for job in listed} == {job.id for job in jobs}
        assert [job.modified_at for job in listed] == sorted((job.modified_at for job in jobs), reverse=True)

    async def test_pages_of_jobs_hold_while_others_are_written(self, storage: Storage) -> None:
        jobs = [await store_job(storage, a_job(modified_at=float(number))) for number in range(20)]
        seen: list[Job] = []
        cursor, page_number = None, 0
        while True:
            page = await storage.list_jobs("task", cursor=cursor, limit=3)
            seen += page.items
            cursor = page.cursor
            if cursor is None:
                break
            await storage.submit([a_submission()])
            await storage.put_job(replace(jobs[19 - page_number], modified_at=1_000.0 + page_number))
            page_number += 1

        assert [job.id for job in seen] == [job.id for job in reversed(jobs)]

    @pytest.mark.parametrize("cursor", ["", "x", "0", "abc\x00", "é", '{"a": 1}', "9" * 5_000])
    async def test_a_cursor_of_somebody_else_is_refused(self, storage: Storage, job: Job, cursor: str) -> None:
        for page in (
            storage.list_jobs("task", cursor=cursor, limit=1),
            storage.list_executions(job.id, task_id="task", cursor=cursor, limit=1),
            storage.list_unfinished(cursor=cursor, limit=1),
        ):
            with pytest.raises(InvalidInput):
                await page

    async def test_counts_follow_every_write(self, storage: Storage) -> None:
        assert await storage.count_jobs() == 0
        (submitted,) = await storage.submit([a_submission("counted")])
        job = submitted.job
        executions: list[Execution] = [an_execution(job) for _ in range(3)]
        await storage.add_executions(executions)
        await storage.add_executions(executions)

        assert await storage.count_jobs() == 1
        assert await storage.count_executions(job.id, task_id="counted") == 4
        assert await storage.count_executions(job.id, task_id="elsewhere") == 0
        assert await storage.count_executions("nobody", task_id="counted") == 0
