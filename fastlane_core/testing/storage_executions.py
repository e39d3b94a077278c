"""Tests of a storage's executions and their retention."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from fastlane_core.contracts.storage import Storage
from fastlane_core.errors import RevisionConflict
from fastlane_core.models import Execution, Job, Status
from fastlane_core.testing.examples import CREATED_AT, ODD_TEXTS, a_chunk, a_full_execution, a_job, an_execution
from fastlane_core.testing.storage_fixtures import (
    CLIENTS,
    StorageFixtures,
    all_pages,
    count_winners,
    store_execution,
    store_job,
)


class StorageExecutionTests(StorageFixtures):
    """Executions: compare-and-set, pages, what has not ended, what is owed, retention."""

    async def test_an_execution_that_was_never_stored_is_none(self, storage: Storage) -> None:
        assert await storage.get_execution("nowhere") is None

    async def test_added_executions_are_stored(self, storage: Storage, job: Job) -> None:
        executions = [an_execution(job) for _ in range(3)]

        await storage.add_executions(executions)

        for execution in executions:
            assert await storage.get_execution(execution.id) == replace(execution, revision=1)
        await storage.add_executions([])

    async def test_an_execution_that_exists_is_left_as_it_is(self, storage: Storage, execution: Execution) -> None:
        changed = await storage.put_execution(replace(execution, status=Status.RUNNING))
        fresh = an_execution(a_job(job_id=execution.job_id))

        await storage.add_executions([replace(execution, revision=0, attempt=9), fresh])

        assert await storage.get_execution(execution.id) == changed
        assert await storage.get_execution(fresh.id) == replace(fresh, revision=1)
        assert await storage.count_executions(execution.job_id, task_id="task") == 2

    async def test_one_of_many_that_add_the_same_execution_is_stored(
        self, storage: Storage, job: Job, clients: Sequence[Storage]
    ) -> None:
        same = an_execution(job)

        await asyncio.gather(*(client.add_executions([same, an_execution(job)]) for client in clients))

        assert await storage.count_executions(job.id, task_id="task") == CLIENTS + 1
        listed = await all_pages(
            lambda cursor: storage.list_executions(job.id, task_id="task", cursor=cursor, limit=20)
        )
        assert len(listed) == len({each.id for each in listed}) == CLIENTS + 1

    @pytest.mark.parametrize("text", ODD_TEXTS)
    async def test_every_field_survives_a_change(self, storage: Storage, execution: Execution, text: str) -> None:
        full = replace(
            a_full_execution(a_job(job_id=execution.job_id), text), id=execution.id, revision=execution.revision
        )

        stored = await storage.put_execution(full)

        assert stored == replace(full, revision=execution.revision + 1)
        assert await storage.get_execution(execution.id) == stored

    # Compare-and-set

    async def test_put_execution_replaces_the_revision_that_was_read(
        self, storage: Storage, execution: Execution
    ) -> None:
        changed = await storage.put_execution(replace(execution, status=Status.PULLING))

        assert changed == replace(execution, status=Status.PULLING, revision=execution.revision + 1)
        with pytest.raises(RevisionConflict):
            await storage.put_execution(replace(execution, status=Status.FAILED))
        assert await storage.get_execution(execution.id) == changed

    async def test_put_execution_adds_none(self, storage: Storage, job: Job) -> None:
        for revision in (0, 1):
            with pytest.raises(RevisionConflict):
                await storage.put_execution(replace(an_execution(job), revision=revision))

        assert await storage.count_executions(job.id, task_id="task") == 0

    async def test_one_write_of_each_revision_of_an_execution_wins(
        self, storage: Storage, execution: Execution, clients: Sequence[Storage]
    ) -> None:
        attempts = [client.put_execution(replace(execution, fence=number)) for number, client in enumerate(clients)]

        assert await count_winners(attempts) == 1

    async def test_no_change_of_an_execution_is_lost_in_a_race(
        self, storage: Storage, execution: Execution, clients: Sequence[Storage]
    ) -> None:
        async def raise_fence(client: Storage) -> None:
            while True:
                found = await client.get_execution(execution.id)
                assert found is not None
                try:
                    await client.put_execution(replace(found, fence=found.fence + 1))
                except RevisionConflict:
                    continue
                return

        await asyncio.gather(*(raise_fence(client) for client in clients))

        final = await storage.get_execution(execution.id)
        assert final is not None
        assert final.fence == CLIENTS

    # Pages

    async def test_executions_are_listed_newest_first(self, storage: Storage, job: Job) -> None:
        other = await store_job(storage, a_job("other", job.id))
        for number in range(5):
            await store_execution(storage, an_execution(job, f"{number}", created_at=CREATED_AT + number))
        await store_execution(storage, an_execution(other, "of another task"))

        page = await storage.list_executions(job.id, task_id="task", cursor=None, limit=10)

        assert [each.id for each in page.items] == ["4", "3", "2", "1", "0"]
        assert page.cursor is None

    async def test_a_job_without_executions_has_an_empty_page(self, storage: Storage, job: Job) -> None:
        for job_id in (job.id, "nobody"):
            page = await storage.list_executions(job_id, task_id="task", cursor=None, limit=10)
            assert (list(page.items), page.cursor) == ([], None)

    @pytest.mark.parametrize("limit", [1, 7, 25, 100])
    async def test_pages_of_executions_neither_repeat_nor_skip(self, storage: Storage, job: Job, limit: int) -> None:
        executions = [an_execution(job, created_at=CREATED_AT + number // 10) for number in range(25)]
        await storage.add_executions(executions)

        listed = await all_pages(
            lambda cursor: storage.list_executions(job.id, task_id="task", cursor=cursor, limit=limit)
        )

        assert len(listed) == 25
        assert {each.id for each in listed} == {each.id for each in executions}
        assert [each.created_at for each in listed] == sorted((each.created_at for each in executions), reverse=True)

    async def test_pages_of_executions_hold_while_newer_ones_are_added(self, storage: Storage, job: Job) -> None:
        executions = [an_execution(job, created_at=CREATED_AT + number) for number in range(10)]
        await storage.add_executions(executions)
        seen: list[Execution] = []
        cursor, later = None, CREATED_AT + 100
        while True:
            page = await storage.list_executions(job.id, task_id="task", cursor=cursor, limit=3)
            seen += page.items
            cursor = page.cursor
            if cursor is None:
                break
            later += 1
            await storage.add_executions([an_execution(job, created_at=later)])
            await storage.put_execution(replace(seen[-1], status=Status.RUNNING))

        assert [each.id for each in seen] == [each.id for each in reversed(executions)]

    # What has not ended

    async def test_unfinished_are_those_that_have_not_ended(self, storage: Storage, job: Job) -> None:
        for status in Status:
            await store_execution(storage, an_execution(job, status.value, status=status))

        listed = await all_pages(lambda cursor: storage.list_unfinished(cursor=cursor, limit=2))

        assert {each.id for each in listed} == {status.value for status in Status if not status.is_final}

    async def test_an_execution_leaves_the_unfinished_when_it_ends(
        self, storage: Storage, execution: Execution
    ) -> None:
        assert [each.id for each in (await storage.list_unfinished(cursor=None, limit=9)).items] == [execution.id]

        await storage.put_execution(replace(execution, status=Status.DONE))

        page = await storage.list_unfinished(cursor=None, limit=9)
        assert (list(page.items), page.cursor) == ([], None)

    async def test_unfinished_of_a_job_are_its_own_however_many_have_ended(self, storage: Storage, job: Job) -> None:
        other = await store_job(storage, a_job("elsewhere", job.id))
        ended = [an_execution(job, status=Status.DONE, created_at=CREATED_AT + number) for number in range(5)]
        begun = [an_execution(job, status=status) for status in Status if not status.is_final]
        await storage.add_executions(
            [*begun, *ended, an_execution(other), an_execution(job, created_at=CREATED_AT + 9)]
        )

        listed = await all_pages(
            lambda cursor: storage.list_unfinished_of_job(job.id, task_id="task", cursor=cursor, limit=2)
        )

        assert len(listed) == len(begun) + 1
        assert {each.id for each in begun} < {each.id for each in listed}
        assert {each.task_id for each in listed} == {"task"}
        await storage.put_execution(replace(listed[0], status=Status.STOPPED))
        rest = await storage.list_unfinished_of_job(job.id, task_id="task", cursor=None, limit=9)
        assert [each.id for each in rest.items] == [each.id for each in listed[1:]]
        assert not (await storage.list_unfinished_of_job("none", task_id="task", cursor=None, limit=9)).items

    async def test_pages_of_unfinished_hold_while_some_end_and_others_come(self, storage: Storage, job: Job) -> None:
        executions = [an_execution(job, f"{number}") for number in range(20)]
        await storage.add_executions(executions)
        seen: list[str] = []
        ended: set[str] = set()
        cursor = None
        for number in range(20):
            page = await storage.list_unfinished(cursor=cursor, limit=3)
            seen += [each.id for each in page.items]
            cursor = page.cursor
            if cursor is None:
                break
            for ending in (page.items[0].id, f"{19 - number}"):
                found = await storage.get_execution(ending)
                assert found is not None
                if not found.status.is_final:
                    await storage.put_execution(replace(found, status=Status.DONE))
                    ended.add(ending)

        assert len(seen) == len(set(seen))
        assert {each.id for each in executions} - ended <= set(seen)

    # What is owed

    async def test_owing_are_those_that_are_due_earliest_first(self, storage: Storage, job: Job) -> None:
        for time in (30.0, 10.0, 40.0, 20.0):
            await store_execution(storage, an_execution(job, f"{time:.0f}", status=Status.DONE, owes_at=time))
        await store_execution(storage, an_execution(job, "nothing", status=Status.DONE))

        assert [each.id for each in await storage.list_owing(until=30.0, limit=9)] == ["10", "20", "30"]
        assert [each.id for each in await storage.list_owing(until=100.0, limit=2)] == ["10", "20"]
        assert list(await storage.list_owing(until=9.99, limit=9)) == []

    async def test_what_an_execution_owes_follows_its_changes(self, storage: Storage, execution: Execution) -> None:
        ended = await storage.put_execution(replace(execution, status=Status.DONE, owes_at=5.0))
        assert [each.id for each in await storage.list_owing(until=5.0, limit=9)] == [execution.id]

        later = await storage.put_execution(replace(ended, owes_at=50.0))
        assert list(await storage.list_owing(until=5.0, limit=9)) == []
        assert list(await storage.list_owing(until=50.0, limit=9)) == [later]

        await storage.put_execution(replace(later, owes_at=None))
        assert list(await storage.list_owing(until=50.0, limit=9)) == []

    # Retention

    async def test_only_what_ended_before_and_owes_nothing_is_removed(self, storage: Storage, job: Job) -> None:
        def ended(execution_id: str, at: float, owes_at: float | None = None) -> Execution:
            return an_execution(job, execution_id, status=Status.DONE, finished_at=at, owes_at=owes_at)

        await storage.add_executions(
            [ended("old", 10.0), ended("at that time", 20.0), ended("new", 30.0), ended("owing", 10.0, owes_at=5.0)]
        )
        await storage.add_executions([an_execution(job, "running", status=Status.RUNNING, created_at=1.0)])

        assert await storage.remove_finished(before=20.0, limit=100) == 1

        page = await storage.list_executions(job.id, task_id="task", cursor=None, limit=10)
        assert {each.id for each in page.items} == {"at that time", "new", "owing", "running"}
        assert await storage.get_execution("old") is None
        assert await storage.get_job("task", job.id) == job
        assert await storage.count_jobs() == 1

    async def test_removal_goes_in_batches_and_keeps_counts(self, storage: Storage, job: Job) -> None:
        await storage.add_executions(
            [an_execution(job, status=Status.FAILED, finished_at=float(number)) for number in range(25)]
        )
        await storage.add_executions([an_execution(job, "stays")])

        counts = [await storage.remove_finished(before=100.0, limit=10) for _ in range(4)]

        assert counts == [10, 10, 5, 0]
        assert await storage.count_executions(job.id, task_id="task") == 1
        page = await storage.list_executions(job.id, task_id="task", cursor=None, limit=10)
        assert [each.id for each in page.items] == ["stays"]

    async def test_an_execution_may_be_removed_once_its_debts_are_paid(
        self, storage: Storage, execution: Execution
    ) -> None:
        owing = await storage.put_execution(
            replace(execution, status=Status.DONE, finished_at=10.0, updated_at=10.0, owes_at=10.0)
        )
        assert await storage.remove_finished(before=20.0, limit=10) == 0

        await storage.put_execution(replace(owing, owes_at=None))
        assert await storage.remove_finished(before=20.0, limit=10) == 1

    async def test_logs_go_with_their_execution(self, storage: Storage, job: Job) -> None:
        gone = an_execution(job, "gone", status=Status.DONE, finished_at=10.0)
        stays = an_execution(job, "stays", status=Status.DONE, finished_at=30.0)
        await storage.add_executions([gone, stays])
        for execution in (gone, stays):
            await storage.append_log(execution.id, [a_chunk(number, b"data") for number in range(1, 301)])

        await storage.remove_finished(before=20.0, limit=10)

        assert list(await storage.read_log("gone", after=0, stream=None, max_bytes=100)) == []
        assert await storage.last_log("gone") == {}
        assert max(chunk.sequence for chunk in (await storage.last_log("stays")).values()) == 300
        await storage.add_executions([replace(gone, status=Status.RUNNING, finished_at=None)])
        await storage.append_log("gone", [a_chunk(1, b"new")])
        (chunk,) = await storage.read_log("gone", after=0, stream=None, max_bytes=100)
        assert chunk.data == b"new"

    async def test_removing_at_the_same_time_removes_each_once(
        self, storage: Storage, job: Job, clients: Sequence[Storage]
    ) -> None:
        await storage.add_executions([an_execution(job, status=Status.DONE, finished_at=1.0) for _ in range(100)])

        removed = await asyncio.gather(*(client.remove_finished(before=2.0, limit=7) for client in clients))

        assert sum(removed) == 100
        assert await storage.count_executions(job.id, task_id="task") == 0
