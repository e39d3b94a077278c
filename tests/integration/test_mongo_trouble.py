"""A MongoDB that is killed, hangs or is not there: calls fail in time, nothing accepted is lost, and all goes on."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest

from fastlane_core.builtin.mongo.documents import MAX_RECORD_BYTES
from fastlane_core.builtin.mongo.server import MongoServer as Server
from fastlane_core.builtin.mongo.storage import MongoStorage
from fastlane_core.contracts.storage import Submission
from fastlane_core.errors import InvalidInput, RevisionConflict, SchemaTooNew, StorageUnavailable
from fastlane_core.testing.examples import a_chunk, a_job, a_submission, an_execution, new_id
from fastlane_core.testing.storage_fixtures import store_execution, store_job
from tests.services.mongodb import MongoServer
from tests.services.ports import free_port

pytestmark = [
    pytest.mark.services,
    # The driver leaves sockets to the garbage collector that were being connected when it was closed.
    pytest.mark.filterwarnings("ignore:.*socket.socket:pytest.PytestUnraisableExceptionWarning"),
]

#: Far beyond what anything here takes.
PATIENCE = 60.0
TIMEOUT = 3.0


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    yield
    gc.collect()


@pytest.fixture
async def storage(own_mongo: MongoServer) -> AsyncIterator[MongoStorage]:
    made = MongoStorage(Server(url=own_mongo.url, database="fastlane"), timeout=20.0)
    await made.open()
    yield made
    await made.close()


@pytest.fixture
async def hasty(own_mongo: MongoServer, storage: MongoStorage) -> AsyncIterator[MongoStorage]:
    """One that gives up soon, once another has made what it needs."""
    made = MongoStorage(Server(url=own_mongo.url, database="fastlane"), timeout=TIMEOUT)
    await made.open()
    yield made
    await made.close()


async def test_what_is_accepted_under_kills_and_restarts_is_there_once(
    own_mongo: MongoServer, storage: MongoStorage, hasty: MongoStorage
) -> None:
    keys = [new_id() for _ in range(120)]
    waiting = list(keys)
    accepted: dict[str, str] = {}
    failures = 0

    async def client() -> None:
        nonlocal failures
        while waiting:
            key = waiting.pop()
            while key not in accepted:
                try:
                    (submitted,) = await hasty.submit([a_submission(f"task {len(key)}", idempotency_key=key)])
                except StorageUnavailable:
                    failures += 1
                    await asyncio.sleep(0.05)
                    continue
                accepted[key] = submitted.job.id

    async def kill_now_and_then() -> None:
        for share in (3, 2):
            while len(accepted) < len(keys) // share:
                await asyncio.sleep(0.01)
            await asyncio.to_thread(own_mongo.restart)

    async with asyncio.timeout(3 * PATIENCE):
        await asyncio.gather(kill_now_and_then(), *(client() for _ in range(8)))

    assert failures
    # Connections from before the restart are found dead by their next use.
    await storage.close()
    await storage.open()
    for key, job_id in accepted.items():
        (again,) = await storage.submit([a_submission(f"task {len(key)}", idempotency_key=key)])
        assert again.repeated
        assert again.job.id == job_id
        assert again.execution is not None
        assert await storage.get_execution(again.execution.id) == again.execution
    assert await storage.count_jobs() == len(keys)
    assert await storage.count_tasks() == 1


async def test_a_server_that_hangs_fails_calls_in_time(
    own_mongo: MongoServer, storage: MongoStorage, hasty: MongoStorage
) -> None:
    submission = a_submission()
    own_mongo.pause()
    try:
        for call in (hasty.health, lambda: hasty.submit([submission]), lambda: hasty.get_job("task", "job")):
            async with asyncio.timeout(PATIENCE):
                with pytest.raises(
                    StorageUnavailable, match=r"in time|no server there takes writes|connection was lost"
                ):
                    await call()
    finally:
        own_mongo.resume()

    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                (submitted,) = await hasty.submit([a_submission(idempotency_key="after")])
                break
            except StorageUnavailable:
                await asyncio.sleep(0.05)
    assert await storage.get_job("task", submitted.job.id) == submitted.job


async def test_a_call_that_is_cancelled_while_the_server_hangs_ends_at_once(
    own_mongo: MongoServer, storage: MongoStorage
) -> None:
    own_mongo.pause()
    try:
        calls = [asyncio.create_task(storage.submit([a_submission()])) for _ in range(5)]
        done, _ = await asyncio.wait(calls, timeout=0.2)
        assert not done
        for call in calls:
            call.cancel()
        # Less than the time that the calls had.
        async with asyncio.timeout(15.0):
            results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(each, asyncio.CancelledError) for each in results)
    finally:
        own_mongo.resume()
    async with asyncio.timeout(PATIENCE):
        assert await storage.health()


async def test_no_call_swallows_its_cancellation(storage: MongoStorage) -> None:
    async def call_and_wait_for_ever() -> None:
        await storage.put_state("scope", "key", {}, revision=None)
        await storage.list_state("scope")
        await asyncio.Event().wait()

    for number in range(200):
        calling = asyncio.create_task(call_and_wait_for_ever())
        await asyncio.sleep(number * 0.000_1)
        calling.cancel()
        done, _ = await asyncio.wait([calling], timeout=PATIENCE)
        calling.cancel()
        assert done, number
        assert calling.cancelled()


async def test_closing_does_not_wait_for_a_server_that_hangs(own_mongo: MongoServer, storage: MongoStorage) -> None:
    await storage.submit([a_submission()])
    own_mongo.pause()
    try:
        async with asyncio.timeout(15.0):
            await storage.close()
    finally:
        own_mongo.resume()


async def test_a_server_that_is_not_there_is_named_without_the_password() -> None:
    url = f"mongodb://app:hunter2@127.0.0.1:{free_port()}/"
    storage = MongoStorage(Server(url=url, database="fastlane"), timeout=TIMEOUT)

    async with asyncio.timeout(PATIENCE):
        with pytest.raises(StorageUnavailable) as refusal:
            await storage.open()

    assert "127.0.0.1:" in str(refusal.value)
    assert "MONGODB_URL" in str(refusal.value)
    assert "hunter2" not in str(refusal.value)
    with pytest.raises(StorageUnavailable):
        await storage.get_task("task")
    await storage.close()


async def test_a_storage_goes_on_after_a_restart_of_its_server(own_mongo: MongoServer, storage: MongoStorage) -> None:
    (submitted,) = await storage.submit([a_submission()])
    await asyncio.to_thread(own_mongo.restart)

    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                assert await storage.get_job("task", submitted.job.id) == submitted.job
                break
            except StorageUnavailable:
                await asyncio.sleep(0.05)
    assert "MongoDB" in await storage.health()


async def test_fifty_clients_of_their_own_win_each_revision_once(own_mongo: MongoServer, storage: MongoStorage) -> None:
    execution = await store_execution(storage, an_execution(await store_job(storage, a_job())))
    clients = [MongoStorage(Server(url=own_mongo.url, database="fastlane"), timeout=PATIENCE) for _ in range(50)]
    await asyncio.gather(*(each.open() for each in clients))

    async def take_over(client: MongoStorage) -> bool:
        try:
            await client.put_execution(replace(execution, fence=execution.fence + 1))
        except RevisionConflict:
            return False
        return True

    won = await asyncio.gather(*(take_over(each) for each in clients))
    await asyncio.gather(*(each.submit([a_submission("new")]) for each in clients))

    assert won.count(True) == 1
    task = await storage.get_task("new")
    assert task is not None
    assert task.jobs_count == 50
    await asyncio.gather(*(each.close() for each in clients))


async def test_a_log_bigger_than_a_document_may_be_is_appended_at_once(storage: MongoStorage) -> None:
    execution = await store_execution(storage, an_execution(await store_job(storage, a_job())))
    chunks = [a_chunk(number, number.to_bytes(4, "big") * 65_536) for number in range(1, 81)]

    await storage.append_log(execution.id, chunks)

    found = await storage.read_log(execution.id, after=0, stream=None, max_bytes=2**30)
    assert list(found) == chunks
    assert {each.sequence for each in (await storage.last_log(execution.id)).values()} == {80}


async def test_a_record_that_no_document_can_hold_is_refused(storage: MongoStorage) -> None:
    job = replace(a_job(), metadata={"big": "x" * MAX_RECORD_BYTES})

    with pytest.raises(InvalidInput, match=str(MAX_RECORD_BYTES)):
        await storage.submit([Submission(job=job, execution=an_execution(job))])

    assert await storage.count_tasks() == 0
    assert await storage.count_jobs() == 0


async def test_data_of_a_newer_fastlane_is_left_alone(own_mongo: MongoServer, storage: MongoStorage) -> None:
    client = Server(url=own_mongo.url, database="fastlane").client()
    await client["fastlane"]["schema"].update_one({"_id": "storage"}, {"$set": {"version": 99}})
    await client.close()

    with pytest.raises(SchemaTooNew, match="99"):
        await MongoStorage(Server(url=own_mongo.url, database="fastlane")).open()
