"""Tests of a storage that is read, written and cleared at the same time, and whose ids are any text."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import pytest

from fastlane_core.contracts.storage import Storage, Submission
from fastlane_core.errors import RevisionConflict
from fastlane_core.models import Execution, Job, LogChunk, Status
from fastlane_core.testing.examples import CREATED_AT, ODD_TEXTS, a_chunk, a_job, a_submission, an_execution
from fastlane_core.testing.storage_fixtures import (
    CLIENTS,
    StorageFixtures,
    all_pages,
    count_winners,
    store_execution,
    store_job,
)


class StorageRaceTests(StorageFixtures):
    """Pages under writes, writes under removals, logs that are read while they grow, odd ids everywhere."""

    async def test_one_of_many_submissions_that_replace_a_job_wins(
        self, storage: Storage, job: Job, clients: Sequence[Storage]
    ) -> None:
        submissions = [
            Submission(job=replace(job, retries=number), execution=an_execution(job, f"{number}"))
            for number in range(len(clients))
        ]

        won = await count_winners([client.submit([each]) for client, each in zip(clients, submissions, strict=True)])

        stored = await storage.get_job("task", job.id)
        assert stored is not None
        assert (won, stored.revision) == (1, job.revision + 1)
        page = await storage.list_executions(job.id, task_id="task", cursor=None, limit=100)
        assert [each.id for each in page.items] == [f"{stored.retries}"]
        assert await storage.count_executions(job.id, task_id="task") == 1
        assert await storage.count_jobs() == 1

    async def test_lists_hold_what_was_there_while_many_write(
        self, storage: Storage, clients: Sequence[Storage]
    ) -> None:
        # Older than whatever is written meanwhile, which comes first therefore.
        job = await store_job(storage, a_job(modified_at=CREATED_AT - 100))
        jobs = [job, *[await store_job(storage, a_job(modified_at=CREATED_AT - 99)) for _ in range(19)]]
        executions = [an_execution(job, created_at=CREATED_AT - number) for number in range(1, 31)]
        await storage.add_executions(executions)

        async def write(client: Storage) -> None:
            for _ in range(2):
                await client.submit([a_submission()])
                await client.add_executions([an_execution(job)])

        async def pages() -> None:
            listed = await all_pages(lambda cursor: storage.list_jobs("task", cursor=cursor, limit=3))
            assert_each_once(jobs, listed)
            found = await all_pages(
                lambda cursor: storage.list_executions(job.id, task_id="task", cursor=cursor, limit=3)
            )
            assert_each_once(executions, found)
            unfinished = await all_pages(lambda cursor: storage.list_unfinished(cursor=cursor, limit=7))
            assert_each_once(executions, unfinished)

        await self._while_running(pages, *(write(client) for client in clients))

        assert await storage.count_executions(job.id, task_id="task") == len(executions) + 2 * CLIENTS

    async def test_pages_of_executions_hold_while_older_ones_are_removed(
        self, storage: Storage, job: Job, clients: Sequence[Storage]
    ) -> None:
        kept = [an_execution(job, created_at=CREATED_AT + number) for number in range(0, 40, 2)]
        gone = [
            an_execution(job, created_at=CREATED_AT + number, status=Status.DONE, finished_at=1.0)
            for number in range(1, 40, 2)
        ]
        await storage.add_executions([*kept, *gone])

        async def pages() -> None:
            found = await all_pages(
                lambda cursor: storage.list_executions(job.id, task_id="task", cursor=cursor, limit=3)
            )
            assert_each_once(kept, found)

        await self._while_running(pages, *(client.remove_finished(before=2.0, limit=1) for client in clients))

        page = await storage.list_executions(job.id, task_id="task", cursor=None, limit=100)
        assert {each.id for each in page.items} == {each.id for each in kept}

    async def test_a_log_that_is_read_while_it_grows_has_no_gap(
        self, storage: Storage, execution: Execution, clients: Sequence[Storage]
    ) -> None:
        async def write() -> None:
            for first in range(1, 201, 4):
                chunks = [a_chunk(number, b"%d" % number, offset=number) for number in range(first, first + 4)]
                await storage.append_log(execution.id, chunks)

        async def read(client: Storage) -> None:
            chunks: list[LogChunk] = []
            while len(chunks) < 200:
                chunks += await client.read_log(
                    execution.id, after=chunks[-1].sequence if chunks else 0, stream=None, max_bytes=7
                )
                assert [each.sequence for each in chunks] == list(range(1, len(chunks) + 1))
            assert all(each.data == b"%d" % each.sequence for each in chunks)

        await asyncio.gather(write(), *(read(client) for client in clients[:6]))

    async def test_a_log_of_twenty_mebibytes_is_appended_at_once(self, storage: Storage, execution: Execution) -> None:
        piece = bytes(range(256)) * 4 * 1024
        await storage.append_log(execution.id, [a_chunk(number, piece) for number in range(1, 21)])

        found: list[LogChunk] = []
        while more := await storage.read_log(execution.id, after=len(found), stream=None, max_bytes=5 * len(piece)):
            assert len(more) == 5
            found += more

        assert [each.sequence for each in found] == list(range(1, 21))
        assert all(each.data == piece for each in found)

    async def test_an_execution_is_removed_or_changed_but_not_both(
        self, storage: Storage, job: Job, clients: Sequence[Storage]
    ) -> None:
        await storage.add_executions(
            [an_execution(job, f"{number}", status=Status.DONE, finished_at=1.0) for number in range(len(clients))]
        )
        page = await storage.list_executions(job.id, task_id="task", cursor=None, limit=100)

        async def change(client: Storage, execution: Execution) -> str | None:
            try:
                await client.put_execution(replace(execution, owes_at=5.0))
            except RevisionConflict:
                return None
            return execution.id

        changed, removed = await asyncio.gather(
            asyncio.gather(*(change(client, each) for client, each in zip(clients, page.items, strict=True))),
            asyncio.gather(*(client.remove_finished(before=2.0, limit=1) for client in reversed(clients))),
        )

        left = {each for each in changed if each is not None}
        page = await storage.list_executions(job.id, task_id="task", cursor=None, limit=100)
        assert {each.id for each in page.items if each.owes_at is not None} == left
        assert sum(removed) + len(page.items) == len(clients)
        assert await storage.count_executions(job.id, task_id="task") == len(page.items)

    @pytest.mark.parametrize("text", ODD_TEXTS)
    async def test_everything_works_with_odd_ids(self, storage: Storage, text: str) -> None:
        job = await store_job(storage, a_job(text, text))
        other = await store_job(storage, a_job(text, text + "/"))
        names = [text, text + "/", text + "\x00", text + "\\0"]
        for name in names:
            await store_execution(storage, an_execution(job, name))
        await store_execution(storage, an_execution(other, text + "other"))

        jobs = await all_pages(lambda cursor: storage.list_jobs(text, cursor=cursor, limit=1))
        assert sorted(each.id for each in jobs) == sorted([text, text + "/"])
        listed = await all_pages(lambda cursor: storage.list_executions(text, task_id=text, cursor=cursor, limit=1))
        assert sorted(each.id for each in listed) == sorted(names)
        unfinished = await all_pages(lambda cursor: storage.list_unfinished(cursor=cursor, limit=1))
        assert sorted(each.id for each in unfinished) == sorted([*names, text + "other"])
        assert await storage.count_executions(text, task_id=text) == 4
        for number, name in enumerate(names):
            await storage.append_log(name, [a_chunk(1, b"%d" % number, position=name)])
        for number, name in enumerate(names):
            (chunk,) = await storage.read_log(name, after=0, stream=None, max_bytes=100)
            assert (chunk.data, chunk.position) == (b"%d" % number, name)
        assert (await storage.put_job(replace(job, retries=1))).retries == 1
        ended = await storage.put_execution(
            replace(listed[0], status=Status.DONE, finished_at=1.0, owes_at=1.0, message=text)
        )
        assert list(await storage.list_owing(until=1.0, limit=9)) == [ended]
        await storage.put_execution(replace(ended, owes_at=None))
        assert await storage.remove_finished(before=2.0, limit=9) == 1
        assert await storage.get_execution(ended.id) is None
        assert await storage.last_log(ended.id) == {}
        assert await storage.count_executions(text, task_id=text) == 3

    @staticmethod
    async def _while_running(check: Callable[[], Awaitable[None]], *writers: Awaitable[object]) -> None:
        """Check again and again until all have written, and once more."""
        writing = asyncio.gather(*writers)
        try:
            while not writing.done():
                await check()
            await writing
        finally:
            writing.cancel()
        await check()


def assert_each_once(expected: Sequence[Job | Execution], found: Sequence[Job | Execution]) -> None:
    """Nothing is there twice, and all that is expected is there."""
    seen = [each.id for each in found]
    assert len(seen) == len(set(seen))
    assert {each.id for each in expected} <= set(seen)
