"""The suite that every storage passes, built in or not."""

from __future__ import annotations

import asyncio

from fastlane_core.contracts.storage import Storage
from fastlane_core.models import Stream
from fastlane_core.testing.examples import a_chunk, a_submission
from fastlane_core.testing.storage_executions import StorageExecutionTests
from fastlane_core.testing.storage_failures import StorageFailureTests
from fastlane_core.testing.storage_fixtures import BuildStorage, MakeStorage
from fastlane_core.testing.storage_jobs import StorageJobTests
from fastlane_core.testing.storage_logs import StorageLogTests
from fastlane_core.testing.storage_races import StorageRaceTests
from fastlane_core.testing.storage_schedules import StorageScheduleTests
from fastlane_core.testing.storage_state import StorageStateTests
from fastlane_core.testing.storage_tasks import StorageTaskTests


class StorageSuite(
    StorageTaskTests,
    StorageJobTests,
    StorageScheduleTests,
    StorageExecutionTests,
    StorageFailureTests,
    StorageLogTests,
    StorageStateTests,
    StorageRaceTests,
):
    """Tests of the contract `fastlane_core.contracts.storage.Storage`.

    Subclass it in a test module, with pytest-asyncio installed and `asyncio_mode = "auto"`, and give this fixture:

    `build_storage`
        A function that returns a new storage, not opened. All that are built within one test use the same data, as
        processes of one deployment do, and these are empty at the start of the test.

        class TestMyStorage(StorageSuite):
            @pytest.fixture
            def build_storage(self, my_server):
                return lambda: MyStorage(my_server.url)
    """

    async def test_health_describes_the_server(self, storage: Storage) -> None:
        assert await storage.health()

    async def test_its_clock_is_a_time_or_none(self, storage: Storage) -> None:
        clock = await storage.clock()
        assert clock is None or clock > 0

    async def test_everything_is_there_after_closing_and_opening_again(self, build_storage: BuildStorage) -> None:
        first = build_storage()
        await first.open()
        submission = a_submission()
        assert submission.execution is not None
        (submitted,) = await first.submit([submission])
        await first.append_log(submission.execution.id, [a_chunk(1, b"kept")])
        await first.put_state("scope", "key", {"kept": True}, revision=0)
        await first.close()

        second = build_storage()
        await second.open()
        try:
            assert await second.get_job("task", submission.job.id) == submitted.job
            assert await second.get_execution(submission.execution.id) == submitted.execution
            assert [
                chunk.data
                for chunk in await second.read_log(submission.execution.id, after=0, stream=None, max_bytes=100)
            ] == [b"kept"]
            state = await second.get_state("scope", "key")
            assert state is not None
            assert state.value == {"kept": True}
            assert (await second.count_tasks(), await second.count_jobs()) == (1, 1)
        finally:
            await second.close()

    async def test_who_opens_it_to_look_reads_what_others_store(
        self, storage: Storage, build_storage: BuildStorage
    ) -> None:
        submission = a_submission()
        assert submission.execution is not None
        looking = build_storage()
        await looking.open_to_look()
        try:
            (submitted,) = await storage.submit([submission])
            assert await looking.get_execution(submission.execution.id) == submitted.execution
            assert (await looking.list_unfinished(cursor=None, limit=10)).items == [submitted.execution]
            assert await looking.list_state("scope") == {}
            assert await looking.health()
        finally:
            await looking.close()
        assert await storage.get_job("task", submission.job.id) == submitted.job

    async def test_what_one_client_wrote_the_others_read(self, storage: Storage, make_storage: MakeStorage) -> None:
        other = await make_storage()
        submission = a_submission()
        assert submission.execution is not None
        await storage.submit([submission])
        await storage.append_log(submission.execution.id, [a_chunk(1, b"seen", stream=Stream.STDERR)])

        assert await other.get_job("task", submission.job.id) is not None
        (chunk,) = await other.read_log(submission.execution.id, after=0, stream=None, max_bytes=100)
        assert chunk.data == b"seen"

    async def test_clients_that_open_at_the_same_time_share_one_schema(self, build_storage: BuildStorage) -> None:
        storages = [build_storage() for _ in range(5)]
        await asyncio.gather(*(storage.open() for storage in storages))
        try:
            await asyncio.gather(*(storage.submit([a_submission()]) for storage in storages))
            assert await storages[0].count_jobs() == len(storages)
        finally:
            await asyncio.gather(*(storage.close() for storage in storages))
