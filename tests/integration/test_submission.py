"""Jobs on their way from the API into storage and queue, also when many come at once or their clients go away."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from fastlane_core.builtin.sqlite.queue import SqliteQueue
from fastlane_core.contracts.queue import QueueItem
from fastlane_core.engine.identifiers import new_id
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


def test_ids_are_uuids_in_the_order_of_their_making() -> None:
    ids = [new_id() for _ in range(1000)]

    assert {uuid.UUID(each).version for each in ids} == {7}
    assert {str(uuid.UUID(each)) for each in ids} == set(ids)
    assert [each[:13] for each in ids] == sorted(each[:13] for each in ids)
