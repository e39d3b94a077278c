"""Tests of a storage's tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from fastlane_core.contracts.storage import Storage, Submission
from fastlane_core.models import Job, Task
from fastlane_core.testing.examples import CREATED_AT, ODD_TEXTS, a_job, a_submission
from fastlane_core.testing.storage_fixtures import CLIENTS, StorageFixtures, store_job


class StorageTaskTests(StorageFixtures):
    """Tasks: made and counted by submissions, listed in order, searched by words."""

    async def test_a_task_that_was_never_submitted_to_is_none(self, storage: Storage) -> None:
        assert await storage.get_task("nowhere") is None
        assert await storage.list_tasks(start=0, limit=10) == []
        assert await storage.count_tasks() == 0

    async def test_the_first_submission_makes_the_task(self, storage: Storage) -> None:
        await store_job(storage, a_job("first", created_at=10.0, modified_at=11.0))

        task = await storage.get_task("first")

        assert task is not None
        assert (task.id, task.created_at, task.modified_at, task.jobs_count) == ("first", 10.0, 11.0, 1)

    async def test_later_submissions_touch_the_task(self, storage: Storage) -> None:
        first = await store_job(storage, a_job("touched", created_at=10.0))
        await store_job(storage, a_job("touched", created_at=20.0))
        await storage.submit([Submission(job=replace(first, modified_at=30.0), execution=None)])

        task = await storage.get_task("touched")

        assert task is not None
        assert (task.created_at, task.modified_at, task.jobs_count) == (10.0, 30.0, 2)

    async def test_concurrent_first_submissions_make_one_task(
        self, storage: Storage, clients: Sequence[Storage]
    ) -> None:
        await asyncio.gather(*(client.submit([a_submission("new")]) for client in clients))

        (task,) = await storage.list_tasks(start=0, limit=10)
        assert (task.id, task.jobs_count) == ("new", CLIENTS)
        assert await storage.get_task("new") == task
        assert (await storage.count_tasks(), await storage.count_jobs()) == (1, CLIENTS)

    async def test_concurrent_submissions_lose_no_job_of_any_task(
        self, storage: Storage, clients: Sequence[Storage]
    ) -> None:
        async def submit(client: Storage) -> None:
            for number in range(4):
                await client.submit([a_submission(f"task {number}")])

        await asyncio.gather(*(submit(client) for client in clients))

        tasks = await storage.list_tasks(start=0, limit=100)
        assert {task.id: task.jobs_count for task in tasks} == {f"task {number}": CLIENTS for number in range(4)}

    async def test_tasks_are_listed_in_the_order_they_were_made(self, storage: Storage) -> None:
        ids = [f"task {(number * 7) % 20}" for number in range(20)]
        for number, task_id in enumerate(ids):
            await store_job(storage, a_job(task_id, created_at=CREATED_AT - number))

        assert [task.id for task in await storage.list_tasks(start=0, limit=100)] == ids
        assert [task.id for task in await storage.list_tasks(start=5, limit=3)] == ids[5:8]
        assert [task.id for task in await storage.list_tasks(start=18, limit=10)] == ids[18:]
        assert await storage.list_tasks(start=20, limit=10) == []
        assert await storage.count_tasks() == 20

    async def test_pages_of_tasks_stay_in_place_while_others_are_made(self, storage: Storage) -> None:
        await storage.submit([a_submission(f"old {number}") for number in range(9)])
        seen = []
        for page in range(3):
            seen += [task.id for task in await storage.list_tasks(start=page * 3, limit=3)]
            await storage.submit([a_submission(f"new {page}"), a_submission("old 1")])

        assert seen == [f"old {number}" for number in range(9)]

    async def test_a_refused_submission_makes_no_task(self, storage: Storage, job: Job) -> None:
        await asyncio.gather(
            storage.submit([a_submission("unmade"), Submission(job=replace(job, revision=0), execution=None)]),
            return_exceptions=True,
        )

        assert await storage.get_task("unmade") is None
        assert await storage.count_tasks() == 1
        assert (await storage.search_tasks("unmade", start=0, limit=10)) == ([], 0)

    # Search

    async def test_search_finds_words_by_their_beginning_without_case(self, storage: Storage) -> None:
        await storage.submit(
            [a_submission(task_id) for task_id in ("Nightly-Backup.db1", "backup_weekly", "mybackup", "report 2024")]
        )

        async def found(query: str) -> set[str]:
            tasks, total = await storage.search_tasks(query, start=0, limit=10)
            assert total == len(tasks)
            return {task.id for task in tasks}

        assert await found("back") == {"Nightly-Backup.db1", "backup_weekly"}
        assert await found("BACKUP nIgHt") == {"Nightly-Backup.db1"}
        assert await found("week back") == {"backup_weekly"}
        assert await found("db1") == {"Nightly-Backup.db1"}
        assert await found("20") == {"report 2024"}
        assert await found("night/week") == set()
        assert await found("ackup") == set()
        assert await found("elsewhere") == set()

    async def test_search_counts_a_task_once_however_many_words_match(self, storage: Storage) -> None:
        await storage.submit([a_submission("data data-base database")])

        tasks, total = await storage.search_tasks("data", start=0, limit=10)

        assert ([task.id for task in tasks], total) == (["data data-base database"], 1)

    async def test_search_needs_no_second_word_for_one_that_it_contains(self, storage: Storage) -> None:
        await storage.submit([a_submission("database"), a_submission("data")])

        tasks, _ = await storage.search_tasks("data database", start=0, limit=10)

        assert [task.id for task in tasks] == ["database"]

    async def test_search_gives_pages_and_the_whole_number(self, storage: Storage) -> None:
        await storage.submit([a_submission(f"build {number}") for number in range(25)])

        pages = [await storage.search_tasks("build", start=start, limit=10) for start in (0, 10, 20, 30)]

        assert [len(tasks) for tasks, _ in pages] == [10, 10, 5, 0]
        assert {total for _, total in pages} == {25}
        assert len({task.id for tasks, _ in pages for task in tasks}) == 25

    async def test_search_gives_tasks_as_they_are_now(self, storage: Storage) -> None:
        await storage.submit([a_submission("current"), a_submission("current")])

        tasks, _ = await storage.search_tasks("current", start=0, limit=1)

        assert tasks == [await storage.get_task("current")]

    @pytest.mark.parametrize("query", ["%", "a*", '"', "x' OR 1=1", "AND", "NEAR(a b)", "^", "a:b", "-", "\x00", "é"])
    async def test_search_takes_any_text_as_words(self, storage: Storage, query: str) -> None:
        await storage.submit([a_submission("unrelated")])

        await storage.search_tasks(query, start=0, limit=10)

    async def test_search_finds_words_in_any_script(self, storage: Storage) -> None:
        await storage.submit([a_submission("ночной отчёт"), a_submission("STRASSE"), a_submission("日本語")])

        for query, expected in (("НОЧ отч", "ночной отчёт"), ("strasse", "STRASSE"), ("日本", "日本語")):
            tasks, _ = await storage.search_tasks(query, start=0, limit=10)
            assert [task.id for task in tasks] == [expected]

    # Odd ids

    async def test_a_task_id_may_be_any_text(self, storage: Storage) -> None:
        await storage.submit([a_submission(text) for text in ODD_TEXTS])

        for text in ODD_TEXTS:
            task = await storage.get_task(text)
            assert task is not None
            assert (task.id, task.jobs_count) == (text, 1)
            (job,) = (await storage.list_jobs(text, cursor=None, limit=10)).items
            assert job.task_id == text
        assert [task.id for task in await storage.list_tasks(start=0, limit=100)] == list(ODD_TEXTS)

    async def test_task_ids_that_look_alike_are_different_tasks(self, storage: Storage) -> None:
        ids = ["Task", "task", "task ", "task\x00", "caf\u00e9", "cafe\u0301"]
        await storage.submit([a_submission(task_id) for task_id in ids])

        assert [(task.id, task.jobs_count) for task in await storage.list_tasks(start=0, limit=10)] == [
            (task_id, 1) for task_id in ids
        ]

    # Limits

    async def test_a_limit_is_kept_with_its_task(self, storage: Storage) -> None:
        await store_job(storage, a_job("first", created_at=10.0))

        limited = await storage.limit_task("first", 3, now=20.0)

        assert limited == await storage.get_task("first")
        assert (limited.concurrency, limited.jobs_count, limited.created_at) == (3, 1, 10.0)
        await store_job(storage, a_job("first", created_at=30.0))
        assert await storage.limit_task("first", 5, now=40.0) == await storage.get_task("first")
        (listed,) = await storage.list_tasks(start=0, limit=10)
        assert (listed.concurrency, listed.jobs_count) == (5, 2)
        assert (await storage.limit_task("first", None, now=50.0)).concurrency is None

    async def test_a_limit_makes_its_task(self, storage: Storage) -> None:
        made = await storage.limit_task("New task", 2, now=10.0)

        assert made == Task(id="New task", created_at=10.0, modified_at=10.0, jobs_count=0, concurrency=2)
        assert (await storage.search_tasks("new", start=0, limit=10))[0] == [made]
        await store_job(storage, a_job("New task", created_at=20.0))
        (found,), count = await storage.search_tasks("new", start=0, limit=10)
        assert (found.jobs_count, found.created_at, found.modified_at, found.concurrency, count) == (
            1,
            10.0,
            20.0,
            2,
            1,
        )
        assert await storage.count_tasks() == 1

    async def test_limited_tasks_are_listed_page_by_page(self, storage: Storage) -> None:
        for number in range(7):
            await store_job(storage, a_job(f"{number}"))
            if number != 3:
                await storage.limit_task(f"{number}", number + 1, now=10.0)
        await storage.limit_task("5", None, now=20.0)

        found: list[str] = []
        cursor: str | None = None
        while True:
            page = await storage.list_limited_tasks(cursor=cursor, limit=2)
            found += [task.id for task in page.items]
            cursor = page.cursor
            if cursor is None:
                break

        assert found == ["0", "1", "2", "4", "6"]
        assert (await storage.list_limited_tasks(cursor=None, limit=5)).cursor is None

    async def test_concurrent_limits_of_a_new_task_make_one(self, storage: Storage, clients: Sequence[Storage]) -> None:
        await asyncio.gather(*(client.limit_task("new", number, now=1.0) for number, client in enumerate(clients)))

        (task,) = await storage.list_tasks(start=0, limit=10)
        assert (await storage.list_limited_tasks(cursor=None, limit=10)).items == [task]
