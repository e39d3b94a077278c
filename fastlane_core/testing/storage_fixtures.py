"""The fixtures of the storage suite."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final, TypeVar

import pytest_asyncio

from fastlane_core.contracts.storage import Page, Storage, Submission
from fastlane_core.errors import RevisionConflict
from fastlane_core.models import Execution, Job
from fastlane_core.testing.examples import a_job, an_execution

BuildStorage = Callable[[], Storage]
MakeStorage = Callable[[], Awaitable[Storage]]

#: Clients that write at the same time.
CLIENTS: Final = 50
#: Seconds that opening or closing may take.
_DEADLINE: Final = 60.0

Record = TypeVar("Record")
ReadPage = Callable[[str | None], Awaitable[Page[Record]]]


class StorageFixtures:
    """Fixtures with their defaults; `StorageSuite` tells which ones to give."""

    @pytest_asyncio.fixture
    async def make_storage(self, build_storage: BuildStorage) -> AsyncIterator[MakeStorage]:
        """Makes an opened storage, as another process would; all are closed in the end."""
        opened: list[Storage] = []

        async def make() -> Storage:
            storage = build_storage()
            await asyncio.wait_for(storage.open(), _DEADLINE)
            opened.append(storage)
            return storage

        yield make
        for storage in opened:
            await asyncio.wait_for(storage.close(), _DEADLINE)

    @pytest_asyncio.fixture
    async def storage(self, make_storage: MakeStorage) -> Storage:
        return await make_storage()

    @pytest_asyncio.fixture
    async def clients(self, storage: Storage, make_storage: MakeStorage) -> Sequence[Storage]:
        """`CLIENTS` storages, over a few connections."""
        some = [storage, await make_storage(), await make_storage()]
        return [some[number % len(some)] for number in range(CLIENTS)]

    @pytest_asyncio.fixture
    async def job(self, storage: Storage) -> Job:
        """A stored job without executions."""
        return await store_job(storage, a_job())

    @pytest_asyncio.fixture
    async def execution(self, storage: Storage, job: Job) -> Execution:
        """A stored execution of `job`."""
        return await store_execution(storage, an_execution(job))


async def store_job(storage: Storage, job: Job) -> Job:
    """Store a new job without an execution."""
    (submitted,) = await storage.submit([Submission(job=job, execution=None)])
    return submitted.job


async def store_execution(storage: Storage, execution: Execution) -> Execution:
    """Store a new execution of a stored job, and give it back as stored."""
    await storage.add_executions([execution])
    stored = await storage.get_execution(execution.id)
    assert stored is not None
    return stored


async def all_pages(read_page: ReadPage[Record]) -> list[Record]:
    """What a list gives, page by page."""
    records: list[Record] = []
    seen: set[str | None] = set()
    cursor = None
    while True:
        assert cursor not in seen, "the list goes round in circles"
        seen.add(cursor)
        page = await read_page(cursor)
        records += page.items
        cursor = page.cursor
        if cursor is None:
            return records


async def count_winners(attempts: Sequence[Awaitable[object]]) -> int:
    """Run all at once; how many got through. The others must raise RevisionConflict."""
    results = await asyncio.gather(*attempts, return_exceptions=True)
    unexpected = [
        each for each in results if isinstance(each, BaseException) and not isinstance(each, RevisionConflict)
    ]
    assert not unexpected
    return sum(not isinstance(each, BaseException) for each in results)
