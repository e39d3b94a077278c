"""Executions that ended long ago are removed with their logs, and nothing else is."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pymongo
import pytest

from fastlane_core.app import engine_options
from fastlane_core.builtin.mongo.server import MongoServer
from fastlane_core.builtin.mongo.storage import MongoStorage
from fastlane_core.models import LogChunk, Status, Stream
from fastlane_core.settings import WorkerSettings
from fastlane_core.testing.examples import an_execution
from tests.integration.engine_harness import QUICK, Deployment, deployment, until

HOUR = 3600.0


@pytest.fixture(params=["sqlite", pytest.param("mongo", marks=pytest.mark.services)])
async def fastlane(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Deployment]:
    if request.param == "sqlite":
        async with deployment(tmp_path) as made:
            yield made
        return
    server = MongoServer(url=request.getfixturevalue("mongo_url"), database=f"fastlane_{uuid.uuid4().hex}")
    async with deployment(tmp_path, storage=MongoStorage(server, timeout=60.0)) as made:
        yield made
    with pymongo.MongoClient[dict[str, object]](server.url, timeoutMS=60_000) as client:
        client.drop_database(server.database)


async def test_what_ended_longer_ago_than_the_setting_is_removed_with_its_log(fastlane: Deployment) -> None:
    async with fastlane.worker():
        old = await fastlane.ended(await fastlane.submit("true"))
    chunk = LogChunk(sequence=1, stream=Stream.STDERR, offset=0, data=b"more than a batch", position="")
    job = await fastlane.storage.get_job(old.task_id, old.job_id)
    assert job is not None
    # More than one call removes.
    many = [an_execution(job, status=Status.DONE, finished_at=fastlane.clock()) for _ in range(250)]
    await fastlane.storage.add_executions(many)
    await fastlane.storage.append_log(many[0].id, [chunk])
    fastlane.clock.advance(HOUR)

    new = an_execution(job, status=Status.DONE, finished_at=fastlane.clock())
    await fastlane.storage.add_executions([new])

    async with fastlane.worker("second", replace(QUICK, keep_finished_seconds=HOUR / 2)):
        running = await fastlane.running(await fastlane.submit("hang"))

        async def only_the_new_one_is_left() -> bool:
            return await fastlane.storage.count_executions(old.job_id, task_id=old.task_id) == 1

        await until(only_the_new_one_is_left)
        assert await fastlane.storage.get_execution(old.id) is None
        assert await fastlane.storage.last_log(many[0].id) == {}
        assert await fastlane.storage.get_job(old.task_id, old.job_id) == job
        assert (await fastlane.now(new)).status is Status.DONE
        assert (await fastlane.now(running)).status is Status.RUNNING
        fastlane.engine.end(running.id)
        await fastlane.ended(running)


async def test_everything_is_kept_unless_the_settings_say_for_how_long(fastlane: Deployment) -> None:
    assert engine_options(WorkerSettings()).keep_finished_seconds is None
    assert engine_options(WorkerSettings(keep_finished_days=0.5)).keep_finished_seconds == 12 * HOUR
    async with fastlane.worker():
        old = await fastlane.ended(await fastlane.submit("true"))
    fastlane.clock.advance(1_000 * 24 * HOUR)

    async with fastlane.worker("second"):
        # As both are done, the second worker has made a pass.
        await fastlane.queue.rebuilt()
        missing = await fastlane.submit("true")
        await fastlane.queue.cancel(missing.id)
        fastlane.clock.advance(60)
        await fastlane.ended(missing)

    assert await fastlane.now(old) == old
