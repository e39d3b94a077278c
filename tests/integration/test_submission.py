"""Jobs on their way from the API into storage and queue, also when many come at once or their clients go away."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from fastlane_core.builtin.sqlite.queue import SqliteQueue
from fastlane_core.contracts.queue import QueueItem
from fastlane_core.engine.identifiers import new_id
from fastlane_core.engine.submission import Enqueuing
from fastlane_core.errors import QueueUnavailable
from tests.integration.api_harness import DEADLINE, Api, running_api

BODY = b'{"image": "busybox", "command": "true"}'


class CountingQueue(SqliteQueue):
    """Remembers how many items each call put; may be down, or held up."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "queue.db", clock=time.time)
        self.puts: list[int] = []
        self.is_down = False
        self.called = asyncio.Event()
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()

    async def put(self, items: Sequence[QueueItem]) -> None:
        self.puts.append(len(items))
        self.called.set()
        await self.may_go_on.wait()
        if self.is_down:
            raise QueueUnavailable("down")
        await super().put(items)


async def submitted(api: Api, count: int) -> list[str]:
    """So many jobs submitted at a time; their executions."""
    return [each.id for each in await asyncio.gather(*(api.submit() for _ in range(count)))]


async def test_jobs_that_come_together_go_into_the_queue_together(tmp_path: Path) -> None:
    queue = CountingQueue(tmp_path)
    async with running_api(tmp_path, queue=queue) as api:
        ids = await submitted(api, 20)

        assert await queue.contains(ids) == set(ids)
        assert sum(queue.puts) == 20
        assert len(queue.puts) < 10


async def test_jobs_are_accepted_while_the_queue_is_down(tmp_path: Path) -> None:
    queue = CountingQueue(tmp_path)
    async with running_api(tmp_path, queue=queue) as api:
        queue.is_down = True
        ids = await submitted(api, 5)
        queue.is_down = False
        more = await submitted(api, 5)

        assert await queue.contains([*ids, *more]) == set(more)
        assert [await api.storage.get_execution(each) is not None for each in ids] == [True] * 5


async def test_a_client_that_goes_away_does_not_keep_its_job_out_of_the_queue(tmp_path: Path) -> None:
    queue = CountingQueue(tmp_path)
    async with running_api(tmp_path, queue=queue) as api, asyncio.timeout(DEADLINE):
        queue.may_go_on.clear()
        _, writer = await asyncio.open_connection("127.0.0.1", api.port)
        head = b"POST /tasks/t/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(BODY)
        writer.write(head + BODY)
        await queue.called.wait()
        writer.close()
        await writer.wait_closed()
        # The server has seen it go when it has answered somebody who came later.
        assert (await api.http.get("/tasks/")).status_code == 200
        queue.may_go_on.set()

        while not (await queue.stats()):
            await asyncio.sleep(0.01)


async def test_answers_do_not_wait_for_a_queue_that_hangs_and_what_comes_meanwhile_is_put_by_one_call(
    tmp_path: Path,
) -> None:
    queue = CountingQueue(tmp_path)
    async with running_api(tmp_path, queue=queue) as api, asyncio.timeout(DEADLINE):
        queue.may_go_on.clear()
        answers = [await api.http.post("/tasks/t/", content=BODY) for _ in range(5)]
        assert {each.status_code for each in answers} == {200}
        await queue.called.wait()
        settled = asyncio.create_task(api.context.submission.settled())
        await asyncio.sleep(0)
        assert not settled.done()

        queue.may_go_on.set()
        await settled

        ids = [each.json()["executionId"] for each in answers]
        assert await queue.contains(ids) == set(ids)
        assert queue.puts == [1, 4]


async def test_very_many_wait_for_a_slow_queue_before_they_are_accepted(tmp_path: Path) -> None:
    queue = CountingQueue(tmp_path)
    async with running_api(tmp_path, queue=queue) as api, asyncio.timeout(DEADLINE):
        enqueuing = Enqueuing(queue, api.context.routing)
        execution = await api.submit()
        await api.context.submission.settled()
        queue.puts.clear()
        queue.called.clear()
        queue.may_go_on.clear()
        await enqueuing.add(execution)
        await queue.called.wait()
        for _ in range(1_000):
            await asyncio.wait_for(enqueuing.add(execution), DEADLINE)

        one_more = asyncio.create_task(enqueuing.add(execution))
        await asyncio.sleep(0)
        assert not one_more.done()
        queue.may_go_on.set()
        await one_more
        await enqueuing.settled()

        assert queue.puts == [1, 1_000, 1]


async def test_what_a_queue_fails_with_unexpectedly_is_told_and_keeps_nothing_else_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = CountingQueue(tmp_path)
    async with running_api(tmp_path, queue=queue) as api, asyncio.timeout(DEADLINE):
        with monkeypatch.context() as patch, capture_logs() as logs:
            patch.setattr(queue, "put", lambda items: 1 / 0)
            await api.submit()
        second = await api.submit()

        assert [each["event"] for each in logs if each["log_level"] == "error"] == [
            "accepted executions are not in the queue; they will be put there later"
        ]
        assert await queue.contains([second.id]) == {second.id}


def test_ids_are_uuids_in_the_order_of_their_making() -> None:
    ids = [new_id() for _ in range(1000)]

    assert {uuid.UUID(each).version for each in ids} == {7}
    assert {str(uuid.UUID(each)) for each in ids} == set(ids)
    assert [each[:13] for each in ids] == sorted(each[:13] for each in ids)


def test_a_forked_process_makes_ids_of_its_own() -> None:
    new_id()
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # Python warns of threads that are lost, none of which is used here.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        os.write(writing, new_id().encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        assert answer.read()[-12:] != new_id()[-12:]
