"""Redis that is emptied, restarted, frozen or failed over: nothing is lost for good, and nothing granted too soon."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from fastlane_core.builtin.redis.keys import INDEX_SHARDS, Keys
from fastlane_core.builtin.redis.queue import RedisQueue
from fastlane_core.contracts.queue import Lease, Queue
from fastlane_core.errors import LeaseLost, QueueUnavailable
from fastlane_core.testing.examples import an_item, new_id
from fastlane_core.testing.queue_fixtures import claim, claim_one, ids
from tests.services.fixtures import require_redis
from tests.services.redis_queues import redis_queue
from tests.services.redis_server import ClusterGroup, RedisServer, SentinelGroup

pytestmark = pytest.mark.services

#: Seconds within which what is waited for has to come.
DEADLINE = 120.0
CLIENTS = 50
#: More than a call to the queue may take in all: no lease runs out while its client waits for an answer.
LEASE_SECONDS = 20.0


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[RedisServer]:
    require_redis()
    with RedisServer(tmp_path) as server:
        yield server


@pytest.fixture
async def queue(own_server: RedisServer) -> AsyncIterator[RedisQueue]:
    queue = redis_queue(own_server.url, new_id())
    await queue.open()
    await queue.rebuilt()
    yield queue
    await queue.close()


async def test_an_emptied_server_grants_nothing_until_it_was_rebuilt(
    queue: RedisQueue, own_server: RedisServer
) -> None:
    await queue.put([an_item("running"), an_item("waiting")])
    running = await claim_one(queue)
    own_server.flush()

    assert await queue.needs_rebuild()
    await queue.put([an_item("new")])
    assert list(await claim(queue)) == []
    await queue.restore_leases([running], 30.0)
    await queue.put([an_item("waiting"), an_item("running")])
    await queue.rebuilt()

    assert not await queue.needs_rebuild()
    assert list(await claim(queue, capacity=1)) == []
    assert ids(await claim(queue)) == ["new", "waiting"]
    assert (await queue.renew([running], 30.0)).lost == frozenset()


async def test_a_server_that_is_emptied_while_it_is_rebuilt_has_to_be_rebuilt_again(
    queue: RedisQueue, own_server: RedisServer
) -> None:
    own_server.flush()
    assert await queue.needs_rebuild()
    await queue.restore_leases([a_lease("running")], 30.0)
    own_server.flush()

    await queue.put([an_item("waiting")])
    await queue.rebuilt()

    assert await queue.needs_rebuild()
    assert list(await claim(queue)) == []


async def test_a_restart_without_persistence_is_noticed(queue: RedisQueue, own_server: RedisServer) -> None:
    await queue.put([an_item("a")])
    own_server.kill()
    own_server.start()

    assert await queue.needs_rebuild()
    await queue.put([an_item("a")])
    assert list(await claim(queue)) == []
    await queue.rebuilt()
    assert ids(await claim(queue)) == ["a"]


async def test_a_restart_with_persistence_loses_nothing(tmp_path: Path) -> None:
    require_redis()
    with RedisServer(tmp_path, persistent=True) as server:
        queue = redis_queue(server.url, new_id())
        await queue.open()
        try:
            await queue.rebuilt()
            await queue.put([an_item("leased"), an_item("waiting")])
            lease = await claim_one(queue)
            server.kill()
            server.start()

            assert not await queue.needs_rebuild()
            assert (await queue.renew([lease], 30.0)).lost == frozenset()
            assert ids(await claim(queue)) == ["waiting"]
        finally:
            await queue.close()


async def test_a_frozen_server_is_told_as_unavailable_in_bounded_time_and_used_again_later(
    own_server: RedisServer,
) -> None:
    queue = redis_queue(own_server.url, new_id(), timeout=3.0, connections=4)
    await queue.open()
    try:
        await queue.rebuilt()
        await queue.put([an_item("a")])
        async with queue.subscribe(["topic"]) as subscription:
            own_server.pause()
            async with asyncio.timeout(DEADLINE):
                calls = await asyncio.gather(*(queue.stats() for _ in range(20)), return_exceptions=True)
                await queue.publish("lost")
                await queue.wait(["lane"], 0.5)
            assert all(isinstance(each, QueueUnavailable) for each in calls)
            assert all("within 3 s" in str(each) for each in calls)
            own_server.resume()

            assert ids(await once_available(queue)) == ["a"]
            async with asyncio.timeout(DEADLINE):
                while True:
                    await queue.publish("topic")
                    if await subscription.next(0.5) == "topic":
                        break
    finally:
        own_server.resume()
        await queue.close()


async def test_waiters_are_woken_when_a_server_is_back(queue: RedisQueue, own_server: RedisServer) -> None:
    async with queue.subscribe(["topic"]) as subscription:
        own_server.kill()
        own_server.start()

        assert await subscription.next(DEADLINE) == "topic"


async def test_one_shard_of_a_cluster_that_is_emptied_does_not_hold_up_the_others(tmp_path: Path) -> None:
    require_redis()
    deployment = new_id()
    keys = Keys(deployment)
    with ClusterGroup(tmp_path) as cluster:
        registry = cluster.holder(keys.registry[0])
        lost = next(lane for lane in lanes() if cluster.holder(keys.lane_state(lane)) is not registry)
        holder = cluster.holder(keys.lane_state(lost))
        whole = next(lane for lane in lanes() if cluster.holder(keys.lane_state(lane)) is not holder)
        shards = [number for number in range(INDEX_SHARDS) if cluster.holder(keys.shard(number)[0]) is holder]
        assert shards
        queue = redis_queue(cluster.url, deployment)
        await queue.open()
        try:
            await queue.rebuilt()
            names = [new_id() for _ in range(40)]
            await queue.put([an_item(name, lane=whole) for name in names])
            await queue.put([an_item("running", lane=lost), an_item("waiting", lane=lost)])
            running = await claim_one(queue, lost)
            with holder.client() as client:
                client.flushall()

            assert await queue.needs_rebuild()
            await queue.put([an_item("waiting", lane=lost)])
            assert list(await claim(queue, lost)) == []
            assert len(await claim(queue, whole, limit=1)) == 1
            await queue.restore_leases([running], 30.0)
            await queue.rebuilt()

            assert not await queue.needs_rebuild()
            assert ids(await claim(queue, lost)) == ["waiting"]
            assert await queue.contains(names) == set(names)
        finally:
            await queue.close()


@pytest.mark.parametrize("first_sentinel", ["answers", "hangs", "is down"])
async def test_nothing_is_lost_for_good_when_sentinels_fail_over_in_the_middle_of_traffic(
    tmp_path: Path, first_sentinel: str
) -> None:
    require_redis()
    with SentinelGroup(tmp_path) as group:

        def fail_over() -> None:
            if first_sentinel == "hangs":
                group.sentinels[0].pause()
            elif first_sentinel == "is down":
                group.sentinels[0].kill()
            group.master().kill()

        await traffic(group.url, fail_over)

        assert group.master().pid != group.servers[0].pid


async def test_nothing_is_lost_for_good_when_a_cluster_fails_over_in_the_middle_of_traffic(tmp_path: Path) -> None:
    require_redis()
    with ClusterGroup(tmp_path) as group:
        deployment = new_id()
        holder = group.holder(Keys(deployment).lane_state("lane"))

        await traffic(group.url, holder.kill, deployment)


async def traffic(url: str, fail_over: Callable[[], None], deployment: str | None = None) -> None:
    """50 clients work, the master dies, and somebody reconciles, as a worker does; then all is as before."""
    deployment = deployment or new_id()
    async with AsyncExitStack() as stack:
        queues = [redis_queue(url, deployment, timeout=15.0) for _ in range(5)]
        for queue in queues:
            await queue.open()
            stack.push_async_callback(queue.close)
        await queues[0].rebuilt()
        work = Work(queues)
        workers = [asyncio.create_task(work.do(queues[number % 5], f"w{number}")) for number in range(CLIENTS)]
        reconciler = asyncio.create_task(work.reconcile())
        try:
            async with asyncio.timeout(DEADLINE):
                await work.put(queues[1], [new_id() for _ in range(200)])
                await work.reached(60)
                await asyncio.to_thread(fail_over)
                await work.put(queues[2], [new_id() for _ in range(200)])
                await work.reached(400)
                # Whatever the failover has lost is mended: from here on each is granted once.
                work.granted.clear()
                # Across it no capacity can be held to: grants that were answered before a replica had them are gone.
                # `min-replicas-to-write` looks only at when replicas were heard of last, and WAIT tells that a replica
                # has a grant, but does not undo one that none has; it would cost each claim a round trip as well.
                work.most_at_once = 0
                fresh = [new_id() for _ in range(100)]
                await work.put(queues[3], fresh)
                await work.reached(500)
        finally:
            for task in (*workers, reconciler):
                task.cancel()
            await asyncio.gather(*workers, reconciler, return_exceptions=True)

        assert {each: work.history[each] for each in fresh if work.granted[each] != 1} == {}
        assert work.most_at_once <= 10
        async with asyncio.timeout(DEADLINE):
            while await queues[0].stats():
                for lease in await claim(queues[0], capacity=100):
                    await queues[0].ack(lease)


class Work:
    """Executions as the storage knows them, and clients that do them."""

    def __init__(self, queues: Sequence[Queue]) -> None:
        self._queues = queues
        #: Accepted so far.
        self.open: list[str] = []
        self.done: set[str] = set()
        self.granted: Counter[str] = Counter()
        #: Of each what was done with it, and when, to explain a failure.
        self.history: defaultdict[str, list[str]] = defaultdict(list)
        self.held: dict[str, Lease] = {}
        self.most_at_once = 0
        self._progress = asyncio.Condition()

    async def put(self, queue: Queue, executions: Sequence[str]) -> None:
        """As the API does: one by one, and what the queue does not take is left to the reconciler.

        That leaves alone what is so new that it may be on its way still: a put which comes after its end has it granted
        once more, as a queue remembers nothing of what has left it.
        """
        for each in executions:
            self._note(each, "being put")
            with contextlib.suppress(QueueUnavailable):
                await queue.put([an_item(each)])
            self._note(each, "put")
            self.open.append(each)

    async def do(self, queue: Queue, worker: str) -> None:
        """Claim and ack for ever."""
        while True:
            with contextlib.suppress(QueueUnavailable, LeaseLost):
                leases = await claim(queue, worker=worker, capacity=10, limit=2, lease_seconds=LEASE_SECONDS)
                for lease in leases:
                    self.held[lease.item.execution_id] = lease
                self.most_at_once = max(self.most_at_once, len(self.held))
                for lease in leases:
                    execution_id = lease.item.execution_id
                    self.granted[execution_id] += not lease.adopted
                    self._note(execution_id, f"{'adopted' if lease.adopted else 'granted'} by {worker}")
                    async with self._progress:
                        self.done.add(execution_id)
                        self._progress.notify_all()
                    self.held.pop(execution_id, None)
                    await queue.ack(lease)
                    self._note(execution_id, f"acked by {worker}")
                if not leases:
                    await queue.wait(["lane"], 0.5)

    async def reconcile(self) -> None:
        """Put back what the queue lacks, and lacked half a second ago."""
        queue = self._queues[-1]
        lacking: set[str] = set()
        while True:
            await asyncio.sleep(0.5)
            with contextlib.suppress(QueueUnavailable):
                missing = [each for each in self.open if each not in self.done]
                if await queue.needs_rebuild():
                    await queue.restore_leases(list(self.held.values()), LEASE_SECONDS)
                    await queue.put([an_item(each) for each in missing if each not in self.held])
                    await queue.rebuilt()
                present = await queue.contains(missing)
                lacked, lacking = lacking, set(missing) - present
                lost = [each for each in lacked & lacking if each not in self.done]
                await queue.put([an_item(each) for each in lost])
                for each in lost:
                    self._note(each, "put again")

    async def reached(self, count: int) -> None:
        """Return when so many are done."""
        async with self._progress:
            await self._progress.wait_for(lambda: len(self.done) >= count)

    def _note(self, execution_id: str, what: str) -> None:
        self.history[execution_id].append(f"{time.monotonic():.3f} {what}")


async def once_available(queue: Queue) -> Sequence[Lease]:
    """Claim as soon as the queue answers; what a call got that was given up is adopted."""
    async with asyncio.timeout(DEADLINE):
        while True:
            with contextlib.suppress(QueueUnavailable):
                if leases := await claim(queue, lease_seconds=0.5):
                    return leases
            await asyncio.sleep(0.05)


def a_lease(execution_id: str) -> Lease:
    """As the reconciler makes it from a record."""
    return Lease(item=an_item(execution_id), worker="w", token="t", adopted=False)


def lanes() -> Iterator[str]:
    """Names of lanes, one after the other."""
    return (f"lane {number}" for number in range(1_000))
