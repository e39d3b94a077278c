"""What the Redis queue promises beyond the contract: repeated calls, bounded keys and connections, TLS and users."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import redis

from fastlane_core.builtin.redis.keys import Keys, shard_of
from fastlane_core.builtin.redis.queue import RedisQueue
from fastlane_core.builtin.redis.scripts import script
from fastlane_core.builtin.redis.servers import TlsFiles
from fastlane_core.contracts.queue import AGEING_SECONDS, Cancelled, Lease, Limit, QueueItem, task_key
from fastlane_core.errors import QueueUnavailable
from fastlane_core.testing.examples import an_item, new_id
from fastlane_core.testing.queue_fixtures import claim, claim_one, ids
from tests.services.certificates import Authority
from tests.services.fixtures import require_redis
from tests.services.redis_queues import redis_queue
from tests.services.redis_server import ClusterGroup, RedisServer, SentinelGroup, one_node_cluster
from tests.services.tcp_proxy import Filter, TcpProxy

pytestmark = pytest.mark.services

#: Seconds within which what is waited for has to come.
DEADLINE = 60.0


class ForgetfulProxy(TcpProxy):
    """Lets a script through to the server, but not its answer: once, when told to."""

    def __init__(self, server: RedisServer, scheme: str = "redis") -> None:
        self._losing: bytes | None = None
        self.lost = 0
        #: What is behind it.
        self.server = server
        self._scheme = scheme
        super().__init__(("127.0.0.1", server.port))

    @property
    def url(self) -> str:
        """As in REDIS_URL."""
        return f"{self._scheme}://127.0.0.1:{self.port}"

    def lose_answer_of(self, name: str) -> None:
        """The next time that this script runs."""
        self._losing = script(name).sha.encode()

    def _filters(self) -> tuple[Filter, Filter]:
        loses = False

        def asked(data: bytes) -> bytes:
            nonlocal loses
            if self._losing is not None and self._losing in data:
                self._losing, loses = None, True
            return data

        def answered(data: bytes) -> bytes:
            if loses:
                self.lost += 1
                raise ConnectionResetError
            return data

        return asked, answered


@pytest.fixture(params=["single", "cluster"])
def proxy(request: pytest.FixtureRequest, redis_server: RedisServer, tmp_path: Path) -> Iterator[ForgetfulProxy]:
    """In front of a server, or of a cluster of one node, where no script touches two slots."""
    if request.param == "single":
        with ForgetfulProxy(redis_server) as proxy:
            yield proxy
        return
    with one_node_cluster(tmp_path / "node") as node, ForgetfulProxy(node, "redis+cluster") as proxy:
        with node.client() as client:
            client.config_set("cluster-announce-port", proxy.port)
        yield proxy


@pytest.fixture
async def deployment() -> str:
    return new_id()


@pytest.fixture
async def queue(proxy: ForgetfulProxy, deployment: str) -> AsyncIterator[RedisQueue]:
    """One behind the proxy, whose scripts the server has."""
    async with opened(redis_queue(proxy.url, deployment)) as queue:
        await queue.rebuilt()
        await queue.put([an_item("first"), an_item("second")])
        first, second = await claim(queue)
        await queue.assign(first, [("place", 1)])
        await queue.renew([first, second], 30.0)
        await queue.hand_over([first])
        await queue.release(second, delay=0.0)
        await queue.cancel("second")
        await queue.restore_leases([first], 30.0)
        await queue.ack(first)
        yield queue


@asynccontextmanager
async def opened(queue: RedisQueue) -> AsyncIterator[RedisQueue]:
    """Open while the context lasts."""
    await queue.open()
    try:
        yield queue
    finally:
        await queue.close()


# Repeated calls


@pytest.mark.parametrize(
    ("proxy", "step"), [("single", "put"), ("cluster", "index_enter"), ("cluster", "put")], indirect=["proxy"]
)
async def test_a_put_whose_answer_is_lost_puts_once(queue: RedisQueue, proxy: ForgetfulProxy, step: str) -> None:
    proxy.lose_answer_of(step)

    await queue.put([an_item("a"), an_item("b")])

    assert proxy.lost == 1
    assert ids(await claim(queue)) == ["a", "b"]
    assert list(await claim(queue)) == []


async def test_a_claim_whose_answer_is_lost_gives_the_same_leases(queue: RedisQueue, proxy: ForgetfulProxy) -> None:
    await queue.put([an_item(f"{number}") for number in range(6)])
    await claim(queue, limit=2, lease_seconds=0.1)
    await asyncio.sleep(0.2)
    proxy.lose_answer_of("claim")

    leases = await claim(queue, worker="second", limit=4)

    assert proxy.lost == 1
    assert sorted((lease.item.execution_id, lease.adopted) for lease in leases) == [
        ("0", True),
        ("1", True),
        ("2", False),
        ("3", False),
    ]
    stats = (await queue.stats())["lane"]
    assert (stats.leased, stats.waiting) == (4, 2)
    assert (await queue.renew(leases, 30.0)).lost == frozenset()


@pytest.mark.parametrize(
    ("proxy", "step"), [("single", "ack"), ("cluster", "ack"), ("cluster", "index_replace")], indirect=["proxy"]
)
async def test_an_ack_whose_answer_is_lost_leaves_nothing(
    queue: RedisQueue, proxy: ForgetfulProxy, deployment: str, step: str
) -> None:
    await queue.put([an_item()])
    lease = await claim_one(queue)
    proxy.lose_answer_of(step)

    await queue.ack(lease)

    assert proxy.lost == 1
    assert await queue.stats() == {}
    assert not [key for key in keys_left(proxy.server, deployment) if key.endswith(":entries")]


async def test_other_steps_may_be_repeated_too(queue: RedisQueue, proxy: ForgetfulProxy) -> None:
    await queue.put([an_item(f"{number}") for number in range(5)])
    placed, released, handed_over, kept = await claim(queue, limit=4)

    proxy.lose_answer_of("assign")
    assert await queue.assign(placed, [("place", 1), ("other", 1)]) == "place"
    proxy.lose_answer_of("release")
    await queue.release(released, delay=0.0)
    proxy.lose_answer_of("hand_over")
    await queue.hand_over([handed_over])
    proxy.lose_answer_of("renew")
    assert (await queue.renew([kept], 30.0)).lost == frozenset()
    proxy.lose_answer_of("cancel")
    assert await queue.cancel("4") is Cancelled.REMOVED
    proxy.lose_answer_of("restore")
    await queue.restore_leases([Lease(item=an_item("new"), worker="w", token="t", adopted=False, place="else")], 30.0)

    assert proxy.lost == 6
    assert await queue.loads("lane") == {"place": 1, "else": 1}
    assert sorted(ids(await claim(queue, worker="second"))) == ["1", "2"]


async def test_limits_are_heeded_when_answers_are_lost(queue: RedisQueue, proxy: ForgetfulProxy) -> None:
    limits = (Limit(key=task_key("task"), capacity=2),)
    proxy.lose_answer_of("put")
    await queue.put([an_item(f"{number}", limits=limits) for number in range(6)])
    proxy.lose_answer_of("claim")
    leases = await claim(queue)
    assert ids(leases) == ["0", "1"]
    proxy.lose_answer_of("ack")
    await queue.ack(leases[0])
    proxy.lose_answer_of("release")
    await queue.release(leases[1], delay=100.0)
    assert ids(await claim(queue)) == ["2", "3"]
    proxy.lose_answer_of("cancel")
    assert await queue.cancel("4") is Cancelled.REMOVED
    await queue.put([an_item("5"), an_item("6")])
    proxy.lose_answer_of("set_limit")
    await queue.set_limit(task_key("task"), 3)
    assert ids(await claim(queue)) == ["5"]
    proxy.lose_answer_of("look_again")
    await queue.set_limit(task_key("task"), None)

    assert ids(await claim(queue)) == ["6"]
    assert proxy.lost == 7
    stats = (await queue.stats())["lane"]
    assert (stats.leased, stats.held, stats.waiting, stats.delayed) == (4, 0, 0, 1)


async def test_a_server_that_has_forgotten_the_scripts_is_told_again(queue: RedisQueue, proxy: ForgetfulProxy) -> None:
    await queue.put([an_item("a")])
    with proxy.server.client() as client:
        client.script_flush()

    assert ids(await claim(queue)) == ["a"]


async def test_no_item_waits_for_ever_behind_higher_priorities(redis_server: RedisServer, deployment: str) -> None:
    async with opened(redis_queue(redis_server.url, deployment)) as queue:
        await queue.rebuilt()
        await queue.put([an_item("old"), an_item("new"), an_item("high", priority=1)])
        waiting = Keys(deployment).lane("lane")[0]
        with redis_server.client() as client:
            scores = {id_.decode(): score for id_, score in client.zrange(waiting, 0, -1, withscores=True)}
            assert scores["new"] - scores["high"] == pytest.approx(AGEING_SECONDS * 1e6, abs=1e6)
            # As if it had waited for so long.
            client.zincrby(waiting, -(AGEING_SECONDS * 1e6 + 1e6), "old")

        assert ids(await claim(queue)) == ["old", "high", "new"]


# Keys


async def test_nothing_is_left_of_what_is_done_but_markers(
    queue: RedisQueue, proxy: ForgetfulProxy, deployment: str
) -> None:
    await queue.put([an_item(f"{number}", priority=number % 3) for number in range(50)])
    for lease in await claim(queue):
        await queue.assign(lease, [("place", 100)])
        await queue.ack(lease)

    left = keys_left(proxy.server, deployment)

    # What was refused is forgotten by the server after some time; the others are as many as lanes and shards.
    assert {key.rpartition(":")[2] for key in left} <= {"state", "lanes", "refused"}
    with proxy.server.client() as client:
        assert all(client.ttl(key) > 0 for key in left if key.endswith("refused"))


async def test_an_entry_that_leads_nowhere_is_removed_in_time(proxy: ForgetfulProxy, deployment: str) -> None:
    keys = Keys(deployment)
    entries = keys.shard(shard_of("crashed"))[0]
    async with opened(redis_queue(proxy.url, deployment, upkeep_seconds=0.01)) as queue:
        await queue.rebuilt()
        await queue.put([an_item("stays")])
        with proxy.server.client() as client:
            # As a put that died between its two writes leaves it.
            client.hset(entries, "crashed", "0123456789abcdeflane")

            await until(lambda: not client.hexists(entries, "crashed"))

        assert await queue.contains(["stays", "crashed"]) == {"stays"}


@pytest.mark.parametrize("lane", ["elsewhere", "lane"])
async def test_an_entry_that_leads_nowhere_keeps_nothing_out(proxy: ForgetfulProxy, deployment: str, lane: str) -> None:
    async with opened(redis_queue(proxy.url, deployment)) as queue:
        await queue.rebuilt()
        with proxy.server.client() as client:
            client.hset(Keys(deployment).shard(shard_of("id"))[0], "id", f"0123456789abcdef{lane}")

        await queue.put([an_item("id"), an_item("other")])

        assert ids(await claim(queue)) in (["id", "other"], ["other", "id"])
        assert await queue.cancel("id") is Cancelled.LEASED


async def test_putting_and_acknowledging_take_one_call_each_where_one_server_holds_everything(
    redis_server: RedisServer, deployment: str
) -> None:
    def calls(client: redis.Redis) -> int:
        found = client.info("commandstats")
        return sum(found[f"cmdstat_{name}"]["calls"] for name in ("evalsha", "eval") if f"cmdstat_{name}" in found)

    async with opened(redis_queue(redis_server.url, deployment, upkeep_seconds=DEADLINE)) as queue:
        await queue.rebuilt()
        await queue.put([an_item("first")])
        await queue.ack(await claim_one(queue))
        await queue.put([an_item("second")])
        lease = await claim_one(queue)
        with redis_server.client() as client:
            before = calls(client)
            await queue.put([an_item("third"), an_item("fourth")])
            await queue.ack(lease)

            assert calls(client) == before + 2
        assert await queue.contains(["second", "third", "fourth"]) == {"third", "fourth"}


async def test_moving_and_putting_at_once_leaves_an_execution_in_one_lane(
    proxy: ForgetfulProxy, deployment: str
) -> None:
    async with opened(redis_queue(proxy.url, deployment, connections=16)) as queue:
        await queue.rebuilt()
        for _ in range(30):
            execution_id = new_id()
            await queue.put([an_item(execution_id, lane="old")])

            async def move(item: QueueItem) -> None:
                await queue.cancel(item.execution_id)
                await queue.put([item])

            await asyncio.gather(
                queue.put([an_item(execution_id, lane="old")]),
                move(an_item(execution_id, lane="new")),
                queue.put([an_item(execution_id, lane="old")]),
                move(an_item(execution_id, lane="third")),
            )

            found = [lease for lane in ("old", "new", "third") for lease in await claim(queue, lane)]
            assert ids(found) == [execution_id]
            await queue.ack(found[0])


async def test_every_script_keeps_to_one_slot(redis_cluster: ClusterGroup, deployment: str) -> None:
    keys = Keys(deployment)
    groups = [keys.lane("lane"), keys.lane("{odd}}{"), keys.lane(""), keys.registry, keys.shard(0), keys.shard(15)]
    with redis_cluster.servers[0].client() as client:
        slots = [{client.execute_command("CLUSTER", "KEYSLOT", key) for key in group} for group in groups]

    assert all(len(found) == 1 for found in slots)
    assert len(set.union(*slots)) == len(groups)


# Connections


async def test_two_hundred_callers_share_few_connections(redis_server: RedisServer, deployment: str) -> None:
    async with opened(redis_queue(redis_server.url, deployment, connections=4)) as queue:
        await queue.rebuilt()
        with redis_server.client() as client:
            before = client.info("clients")["connected_clients"]

            await asyncio.gather(*(queue.put([an_item()]) for _ in range(200)))
            leases = await asyncio.gather(*(claim(queue, capacity=1_000, limit=1) for _ in range(200)))
            await asyncio.gather(*(queue.ack(lease) for each in leases for lease in each))

            assert client.info("clients")["connected_clients"] - before <= 5
        assert await queue.stats() == {}


async def test_a_cancelled_caller_stops_at_once_and_harms_nobody(redis_server: RedisServer, deployment: str) -> None:
    async with opened(redis_queue(redis_server.url, deployment, connections=4)) as queue:
        await queue.rebuilt()
        for turns in range(60):
            tasks = [asyncio.create_task(queue.stats()) for _ in range(6)]
            for _ in range(turns):
                await asyncio.sleep(0)
            running = [task for task in tasks if task.cancel()]
            await asyncio.gather(*tasks, return_exceptions=True)

            assert all(task.cancelled() for task in running)
        await queue.put([an_item("a")])
        assert ids(await claim(queue)) == ["a"]


async def test_a_unix_socket_will_do(redis_server: RedisServer, deployment: str) -> None:
    async with opened(redis_queue(f"unix://{redis_server.socket_path}?db=3", deployment)) as queue:
        assert "Redis" in await queue.health()
        assert await queue.needs_rebuild()


async def test_wrong_credentials_are_told_at_once_and_without_the_password(tmp_path: Path, deployment: str) -> None:
    require_redis()
    with RedisServer(tmp_path, options=["requirepass right"], credentials=("default", "right")) as server:
        for url in (f"redis://127.0.0.1:{server.port}", f"redis://:hunter2@127.0.0.1:{server.port}"):
            with pytest.raises(QueueUnavailable) as refused:
                await redis_queue(url, deployment, timeout=DEADLINE).open()

            assert f"127.0.0.1:{server.port}" in str(refused.value)
            assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("scheme", ["rediss", "rediss+cluster"])
async def test_tls_with_a_user_who_may_do_only_what_the_queue_needs(
    tmp_path: Path, deployment: str, scheme: str
) -> None:
    require_redis()
    authority = Authority(tmp_path / "authority")
    identity, folder = authority.issue("127.0.0.1"), tmp_path / "server"
    options = ["user fastlane on >secret ~fastlane:* &fastlane:* +@all -@admin -@dangerous +info"]
    started = (
        RedisServer(folder, tls=identity, ca=authority.ca, options=options)
        if scheme == "rediss"
        else one_node_cluster(folder, tls=identity, ca=authority.ca, options=options)
    )
    with started as server:
        await use_by_tls(f"{scheme}://fastlane:secret@127.0.0.1:{server.port}", deployment, authority)


async def test_tls_to_sentinels_and_to_what_they_watch(tmp_path: Path, deployment: str) -> None:
    require_redis()
    authority = Authority(tmp_path / "authority")
    with SentinelGroup(
        tmp_path / "group",
        password="secret",
        sentinel_password="other",
        tls=authority.issue("127.0.0.1"),
        ca=authority.ca,
    ) as group:
        await use_by_tls(group.url, deployment, authority, sentinel_password="other")


async def use_by_tls(url: str, deployment: str, authority: Authority, *, sentinel_password: str | None = None) -> None:
    """Everything is done through TLS, and nothing without the authority or a certificate of one's own."""
    client = authority.issue("fastlane")
    tls = TlsFiles(ca=authority.ca, cert=client.cert, key=client.key)
    async with opened(redis_queue(url, deployment, tls=tls, sentinel_password=sentinel_password)) as queue:
        await queue.rebuilt()
        waiting = asyncio.create_task(queue.wait(["lane"], DEADLINE))
        async with queue.subscribe(["topic"]) as subscription:
            await queue.publish("topic")
            assert await subscription.next(DEADLINE) == "topic"
        await queue.put([an_item("a")])
        await waiting
        await queue.ack(await claim_one(queue))
        assert not await queue.needs_rebuild()
    # A server that wants a certificate may hang up before its word of that has come.
    for refused, told in ((TlsFiles(), "certificate"), (TlsFiles(ca=authority.ca), None)):
        with pytest.raises(QueueUnavailable, match=told):
            await redis_queue(url, deployment, tls=refused, sentinel_password=sentinel_password, timeout=5.0).open()


def keys_left(server: RedisServer, deployment: str) -> list[str]:
    """Keys of a deployment."""
    with server.client() as client:
        return [key.decode() for key in client.scan_iter(match=f"fastlane:{{{deployment}:*", count=10_000)]


async def until(holds: Callable[[], bool]) -> None:
    """Wait for it."""
    async with asyncio.timeout(DEADLINE):
        while not holds():
            await asyncio.sleep(0.02)
