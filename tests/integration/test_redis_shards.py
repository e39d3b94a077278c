"""A shard of a Redis cluster that is lost together with its replica: what is on the others goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from redis.crc import key_slot

from fastlane_core.builtin.redis.keys import Keys, shard_of
from fastlane_core.contracts.queue import Lease
from fastlane_core.errors import QueueUnavailable
from fastlane_core.testing.examples import an_item, new_id
from fastlane_core.testing.queue_fixtures import claim, claim_one, ids
from tests.services.fixtures import require_redis
from tests.services.redis_queues import redis_queue
from tests.services.redis_server import ClusterGroup, cluster_info, until

pytestmark = pytest.mark.services

#: Seconds that a call has; one to a server that hangs takes all of them.
CALL = 6.0
CONNECTIONS = 3
#: Seconds that leases last, so that none runs out by itself.
LEASE = 3_600.0


class Shards:
    """A queue on a cluster of which one shard is to be lost, and the names of what lies where."""

    def __init__(self, cluster: ClusterGroup, *, registry_is_lost: bool) -> None:
        with cluster.servers[0].client() as client:
            nodes = client.execute_command("CLUSTER NODES")
        about = [nodes[f"127.0.0.1:{server.port}"] for server in cluster.servers]
        # That of the first node in the URL, which redis-py also asks what is not about any key.
        (self._range,) = [range(int(first), int(last) + 1) for first, last in about[0]["slots"]]
        replica = next(number for number, node in enumerate(about) if node["master_id"] == about[0]["node_id"])
        self._lost, self._whole = [cluster.servers[0], cluster.servers[replica]], cluster.servers[1]
        deployment = next(each for each in new_ids() if self._has(Keys(each).registry[0]) is registry_is_lost)
        self._keys = Keys(deployment)
        self.url = cluster.url
        self.queue = redis_queue(self.url, deployment, timeout=CALL, connections=CONNECTIONS)

    def lanes(self, count: int, *, lost: bool) -> Sequence[str]:
        """Names of lanes; in alphabetical order, lost ones come first."""
        names = (f"{'a' if lost else 'b'}{number:04}" for number in range(1_000))
        return [each for each in names if self._has(self._keys.lane_state(each)) is lost][:count]

    def execution(self, *, lost: bool = False) -> str:
        """A new id whose index entry is lost, or is not."""
        return next(each for each in new_ids() if self._has(self._keys.shard(shard_of(each))[0]) is lost)

    async def leases(self, lanes: Iterable[str]) -> Sequence[Lease]:
        """One in each lane."""
        leases: list[Lease] = []
        for lane in lanes:
            await self.queue.put([an_item(self.execution(), lane=lane)])
            leases += await claim(self.queue, lane, lease_seconds=LEASE)
        return leases

    def lose(self, how: str) -> None:
        """Have the servers hang, or end them."""
        for each in self._lost:
            if how == "hang":
                each.pause()
            else:
                each.kill()

    def find(self, *, empty: bool) -> None:
        """Let servers that hang go on, perhaps without their data."""
        for each in self._lost:
            each.resume()
        for each in self._lost:
            with each.client() as client:
                if empty and client.info("replication")["role"] == "master":
                    client.flushall()
        with self._whole.client() as client:
            until(lambda: cluster_info(client)["cluster_slots_ok"] == "16384", "a cluster that is whole")

    def _has(self, key: str) -> bool:
        return key_slot(key.encode()) in self._range


@asynccontextmanager
async def opened(folder: Path, *, registry_is_lost: bool = False) -> AsyncIterator[Shards]:
    require_redis()
    with ClusterGroup(folder) as cluster:
        shards = Shards(cluster, registry_is_lost=registry_is_lost)
        await shards.queue.open()
        try:
            await shards.queue.rebuilt()
            yield shards
        finally:
            await shards.queue.close()


@pytest.mark.parametrize("how", ["hang", "end"])
async def test_leases_in_lanes_that_can_be_reached_are_renewed(tmp_path: Path, how: str) -> None:
    async with opened(tmp_path) as shards:
        queue = shards.queue
        # More than the connections that calls may use at a time.
        lost = await shards.leases(shards.lanes(2 * CONNECTIONS, lost=True))
        kept, taken, stopping = await shards.leases(shards.lanes(3, lost=False))
        await queue.renew([kept], 1.0)
        await queue.hand_over([taken])
        assert (await claim_one(queue, taken.item.lane, worker="another")).adopted
        await queue.cancel(stopping.item.execution_id)
        shards.lose(how)

        renewal = await queue.renew([*lost, kept, taken, stopping], LEASE)

        assert renewal.lost == {taken.item.execution_id}
        assert renewal.stop == {stopping.item.execution_id}
        await asyncio.sleep(1.1)
        assert list(await claim(queue, kept.item.lane, worker="another")) == []
        await queue.hand_over([*lost, kept])
        assert (await claim_one(queue, kept.item.lane, worker="another")).adopted
        with pytest.raises(QueueUnavailable):
            await queue.renew(lost, LEASE)


@pytest.mark.parametrize("how", ["hang", "end"])
async def test_lanes_that_can_be_reached_are_used_while_calls_to_others_wait(tmp_path: Path, how: str) -> None:
    async with opened(tmp_path) as shards:
        lost = await shards.leases(shards.lanes(2 * CONNECTIONS, lost=True))
        (lane,) = shards.lanes(1, lost=False)
        await shards.leases([lane])
        shards.lose(how)

        async def keep_trying(lease: Lease) -> None:
            while True:
                with suppress(QueueUnavailable):
                    await shards.queue.renew([lease], LEASE)

        trying = [asyncio.create_task(keep_trying(each)) for each in lost]
        try:
            await asyncio.sleep(CALL)
            for _ in range(100):
                (lease,) = await shards.leases([lane])
                await shards.queue.ack(lease)
                await asyncio.sleep(0.02)
            # What is asked without a key goes to a server that answers.
            await until_it_answers(shards.queue.clock)
            another = redis_queue(shards.url, new_id(), timeout=CALL)
            await until_it_answers(another.open)
            await another.close()
        finally:
            for each in trying:
                each.cancel()
            await asyncio.gather(*trying, return_exceptions=True)


@pytest.mark.parametrize("registry_is_lost", [False, True])
async def test_what_can_be_reached_is_told_and_what_cannot_is_marked(tmp_path: Path, registry_is_lost: bool) -> None:
    async with opened(tmp_path, registry_is_lost=registry_is_lost) as shards:
        queue = shards.queue
        (lost, also_lost), (whole,) = shards.lanes(2, lost=True), shards.lanes(1, lost=False)
        await shards.leases([lost])
        (leased,) = await shards.leases([whole])
        hidden, absent = shards.execution(lost=True), shards.execution()
        await queue.put([an_item(hidden, lane=whole)])
        in_lost_lane = shards.execution()
        await queue.put([an_item(in_lost_lane, lane=also_lost)])
        shards.lose("end")

        stats = await queue.stats()
        assert {lane: each.reachable for lane, each in stats.items()} == {lost: False, also_lost: False, whole: True}
        assert (stats[whole].leased, stats[whole].waiting) == (1, 1)
        assert not await queue.needs_rebuild()
        # Of two of them nobody knows: they must not be put in once more.
        there = {leased.item.execution_id, hidden, in_lost_lane}
        assert await queue.contains([*there, absent]) == there
        assert ids(await claim(queue, whole)) == [hidden]


async def test_what_was_lost_while_it_was_out_of_reach_grants_nothing_until_it_was_put_back(tmp_path: Path) -> None:
    async with opened(tmp_path) as shards:
        queue = shards.queue
        (lane,) = shards.lanes(1, lost=True)
        (lease,) = await shards.leases([lane])
        shards.lose("hang")
        assert not await queue.needs_rebuild()
        await asyncio.to_thread(lambda: shards.find(empty=True))

        await until_it_answers(queue.rebuilt)

        assert await queue.needs_rebuild()
        await queue.put([an_item("new", lane=lane)])
        assert list(await claim(queue, lane)) == []
        await queue.restore_leases([lease], LEASE)
        await queue.rebuilt()
        assert not await queue.needs_rebuild()
        assert list(await claim(queue, lane, capacity=1)) == []
        assert ids(await claim(queue, lane, capacity=2)) == ["new"]


async def until_it_answers(call: Callable[[], Awaitable[object]]) -> None:
    """Repeat it a few times: the cluster finds itself again, or a server that hangs was asked first."""
    for _ in range(5):
        with suppress(QueueUnavailable):
            await call()
            return
    raise AssertionError("the queue does not come back")


def new_ids() -> Iterator[str]:
    """Any number of them."""
    while True:
        yield new_id()
