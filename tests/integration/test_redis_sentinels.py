"""Sentinels of which some are down, hang, or know of an older master: the queue goes on with the others' answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fastlane_core.builtin.redis.queue import RedisQueue
from fastlane_core.contracts.queue import Queue
from fastlane_core.errors import QueueUnavailable
from fastlane_core.testing.examples import an_item, new_id
from fastlane_core.testing.queue_fixtures import claim_one
from tests.services.fixtures import require_redis
from tests.services.redis_queues import redis_queue
from tests.services.redis_server import MASTER_NAME, RedisServer, SentinelGroup, until

pytestmark = pytest.mark.services

#: Seconds that a call has: far more than it needs on a busy machine.
CALL = 30.0


@pytest.fixture
def group(tmp_path: Path) -> Iterator[SentinelGroup]:
    require_redis()
    with SentinelGroup(tmp_path / "group") as group:
        yield group


@pytest.mark.parametrize("trouble", ["hangs", "is down"])
async def test_the_machine_of_the_first_sentinel_and_the_master_may_vanish(group: SentinelGroup, trouble: str) -> None:
    async with opened(group.url) as queue:
        master = group.master()
        for each in (group.sentinels[0], master):
            if trouble == "hangs":
                each.pause()
            else:
                each.kill()
        await asyncio.to_thread(until, lambda: group.master() is not master, "another master")

        # The connection to the old one ends with the first call.
        assert await calls_until_it_answers(queue) <= 2
        await queue.rebuilt()
        await queue.put([an_item("a")])
        await queue.ack(await claim_one(queue))
    async with opened(group.url) as another:
        assert await calls_until_it_answers(another) == 1


async def test_one_sentinel_of_three_that_answers_is_enough(group: SentinelGroup) -> None:
    group.sentinels[0].pause()
    group.sentinels[1].pause()

    async with opened(group.url) as queue:
        assert await calls_until_it_answers(queue) == 1


async def test_a_sentinel_that_knows_of_an_older_master_is_not_believed(group: SentinelGroup, tmp_path: Path) -> None:
    with RedisServer(tmp_path / "old") as old:
        watches = [f"sentinel monitor {MASTER_NAME} 127.0.0.1 {old.port} 1"]
        with RedisServer(tmp_path / "lone-sentinel", sentinel=True, options=watches) as lone:
            master = group.master()
            with group.sentinels[-1].client() as client:
                client.execute_command("SENTINEL", "FAILOVER", MASTER_NAME)
            await asyncio.to_thread(
                until,
                lambda: all(group.master_by(each) is not master for each in group.sentinels),
                "another master that all sentinels know",
            )
            hosts = [f"127.0.0.1:{each.port}" for each in (lone, *group.sentinels[:2])]
            for _ in range(10):
                async with opened(f"redis+sentinel://{','.join(hosts)}/0?master={MASTER_NAME}") as queue:
                    await queue.rebuilt()

            with old.client() as client:
                assert client.dbsize() == 0


async def test_why_no_sentinel_leads_to_a_master_is_told(group: SentinelGroup) -> None:
    group.sentinels[0].kill()
    with pytest.raises(QueueUnavailable) as unknown:
        async with opened(group.url.replace(MASTER_NAME, "another"), timeout=10.0):
            pass

    down, *others = (f"127.0.0.1:{each.port}" for each in group.sentinels)
    assert f"no sentinel names the master another: {down} does not answer" in str(unknown.value)
    for each in others:
        assert f"{each} does not know it" in str(unknown.value)


@asynccontextmanager
async def opened(url: str, *, timeout: float = CALL) -> AsyncIterator[RedisQueue]:
    """A new queue, open while the context lasts."""
    queue = redis_queue(url, new_id(), timeout=timeout)
    await queue.open()
    try:
        yield queue
    finally:
        await queue.close()


async def calls_until_it_answers(queue: Queue) -> int:
    """How many it takes."""
    for number in range(1, 10):
        try:
            await queue.stats()
        except QueueUnavailable:
            continue
        return number
    raise AssertionError("the queue does not come back")
