"""What `fastlane doctor` is told of Redis servers, sentinels and clusters: well, half down, or set up wrong."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from fastlane_core.builtin.redis.plugin import RedisSettings, fastlane_checks
from fastlane_core.builtin.redis.server_checks import Look, judge_clocks, judge_server
from fastlane_core.hookspecs import CheckContext, Finding
from fastlane_core.testing.runner_context import GivenSettings
from tests.services.fixtures import require_redis
from tests.services.ports import free_port
from tests.services.redis_server import MASTER_NAME, ClusterGroup, RedisServer, SentinelGroup, cluster_info, until

pytestmark = pytest.mark.services


async def check(url: str, *, queue: str = "redis", **settings: object) -> Sequence[Finding]:
    context = CheckContext(
        settings=GivenSettings(RedisSettings.model_validate({"redis_url": url, **settings})),
        deployment_id="d",
        api_bind=None,
        clock=time.time,
        storage="sqlite",
        queue=queue,
        runners=(),
    )
    return await fastlane_checks(context)


def wrong(findings: Sequence[Finding]) -> list[tuple[str, str]]:
    """Subject and message of what is not well; every one of it has an advice."""
    found = [each for each in findings if each.level != "ok"]
    assert all(each.advice for each in found)
    return [(each.subject, each.message) for each in found]


async def test_a_server_that_keeps_everything_is_well(tmp_path: Path) -> None:
    require_redis()
    with RedisServer(tmp_path / "kept", persistent=True) as server:
        findings = await check(server.url)

    assert [each.level for each in findings] == ["ok"]
    assert findings[0].subject == f"Redis 127.0.0.1:{server.port}"
    assert ", master of 0 replicas" in findings[0].message


async def test_a_server_without_persistence_is_well_and_one_with_snapshots_alone_is_not(tmp_path: Path) -> None:
    require_redis()
    with RedisServer(tmp_path / "kept") as server:
        assert wrong(await check(server.url)) == []
        with server.client() as client:
            client.config_set("save", "900 1")
            ((_, message),) = wrong(await check(server.url))
            assert "appendonly off" in message
            client.acl_setuser("plain", enabled=True, passwords=["+secret"], categories=["+@all", "-@admin"])
            client.execute_command("ACL", "SETUSER", "plain", "-config")
        ((_, message),) = wrong(await check(server.url.replace("//", "//plain:secret@")))
        assert "appendonly off" in message


async def test_a_server_that_may_throw_jobs_away_or_is_nearly_full_is_told(tmp_path: Path) -> None:
    require_redis()
    with RedisServer(tmp_path / "small") as server, server.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        findings = await check(server.url)
        assert [each.level for each in findings] == ["ok", "warning"]
        client.config_set("maxmemory", int(client.info("memory")["used_memory"]))
        findings = await check(server.url)

    assert [each.level for each in findings] == ["ok", "problem", "warning"]
    assert "allkeys-lru" in findings[1].message
    assert "of its memory" in findings[2].message


async def test_a_replica_in_the_master_s_place_is_a_problem(redis_sentinels: SentinelGroup) -> None:
    replica = next(each for each in redis_sentinels.servers if each.port != redis_sentinels.master().port)

    findings = await check(replica.url)

    assert [each.level for each in findings] == ["ok", "problem"]
    assert "takes no writes" in findings[1].message


async def test_a_server_that_is_down_or_refuses_is_a_problem_and_tells_no_password(tmp_path: Path) -> None:
    require_redis()
    port = free_port()
    (down,) = await check(f"redis://:hush@127.0.0.1:{port}")
    with RedisServer(tmp_path / "locked", options=["requirepass right"], credentials=("default", "right")) as server:
        (refused,) = await check(f"redis://:hush@127.0.0.1:{server.port}")

    for finding in (down, refused):
        assert finding.level == "problem"
        assert finding.advice
        assert "hush" not in finding.message
    assert down.subject == f"Redis 127.0.0.1:{port}"


async def test_nothing_is_asked_where_the_queue_is_another() -> None:
    assert list(await check(f"redis://127.0.0.1:{free_port()}", queue="sqlite")) == []


async def test_a_master_that_needs_no_replica_for_its_writes_is_told(redis_sentinels: SentinelGroup) -> None:
    password, master = redis_sentinels.sentinel_password, redis_sentinels.master()

    (found,) = [
        each for each in await check(redis_sentinels.url, redis_sentinel_password=password) if each.level != "ok"
    ]

    assert (found.level, found.subject) == ("warning", f"Redis 127.0.0.1:{master.port}")
    assert "min-replicas-to-write 0" in found.message
    assert found.advice.startswith("Set min-replicas-to-write 1")


def test_before_a_lone_replica_is_needed_a_second_one_is_advised_and_nothing_where_the_setting_is_unknown() -> None:
    about = {"redis_version": "7.0.15", "role": "master", "aof_enabled": 1, "connected_slaves": 1}

    _, finding = judge_server(Look(name="a", about=about, needed_replicas=0), is_master=True)

    assert finding.advice.startswith("Add a second replica")
    assert len(judge_server(Look(name="a", about=about), is_master=True)) == 1


async def test_sentinels_that_agree_are_well_and_so_are_their_servers(redis_sentinels: SentinelGroup) -> None:
    with redis_sentinels.master().client() as client:
        client.config_set("min-replicas-to-write", 1)
        try:
            findings = await check(redis_sentinels.url, redis_sentinel_password=redis_sentinels.sentinel_password)
        finally:
            client.config_set("min-replicas-to-write", 0)

    assert wrong(findings) == []
    master = redis_sentinels.master().port
    (agreed,) = [each.message for each in findings if each.subject == "sentinels"]
    assert agreed == f"3 of 3 agree that the master {MASTER_NAME} is 127.0.0.1:{master}; a failover needs 2"
    servers = {each.subject: each.message for each in findings if each.subject.startswith("Redis ")}
    assert set(servers) == {f"Redis 127.0.0.1:{each.port}" for each in redis_sentinels.servers}
    assert "master of 2 replicas" in servers[f"Redis 127.0.0.1:{master}"]


async def test_sentinels_without_a_majority_are_told(tmp_path: Path) -> None:
    require_redis()
    with SentinelGroup(tmp_path / "group") as group:
        for each in group.sentinels[:2]:
            each.kill()
        found = wrong(await check(group.url))
        group.sentinels[2].kill()
        none = await check(group.url)

    gone = {f"sentinel 127.0.0.1:{each.port}" for each in group.sentinels[:2]}
    assert gone <= {subject for subject, _ in found}
    (agreed,) = [message for subject, message in found if subject == "sentinels"]
    assert agreed.startswith(f"1 of 3 agree that the master {MASTER_NAME} is ")
    assert [each.subject for each in none if each.level == "problem"] == ["sentinels"]


async def test_a_name_that_the_sentinels_do_not_know_is_told(redis_sentinels: SentinelGroup) -> None:
    url = redis_sentinels.url.replace(MASTER_NAME, "another")

    found = wrong(await check(url, redis_sentinel_password=redis_sentinels.sentinel_password))

    assert len(found) == 4
    assert "does not tell of the master another" in found[0][1]
    assert found[3] == ("sentinels", "none of 3 tells where the master another is")


async def test_a_cluster_that_is_whole_is_well(redis_cluster: ClusterGroup) -> None:
    findings = await check(redis_cluster.url)

    # Each shard has one replica, so a server that takes over could need none.
    told = wrong(findings)
    assert {subject for subject, _ in told} == {f"Redis 127.0.0.1:{each.port}" for each in redis_cluster.masters()}
    assert all("min-replicas-to-write 0" in message for _, message in told)
    (slots,) = [each.message for each in findings if each.subject == "cluster"]
    assert slots == "16384 of 16384 slots are served, the state is ok"
    servers = {each.subject for each in findings if each.subject.startswith("Redis ")}
    assert servers == {f"Redis 127.0.0.1:{each.port}" for each in redis_cluster.servers}


async def test_a_cluster_that_lost_a_master_with_its_replica_is_a_problem(tmp_path: Path) -> None:
    require_redis()
    with ClusterGroup(tmp_path / "cluster") as cluster:
        asked = cluster.servers[1]
        lost = next(each for each in cluster.masters() if each.port not in (asked.port, cluster.servers[0].port))
        with asked.client() as client:
            nodes = client.execute_command("CLUSTER NODES")
            lost_id = nodes[f"127.0.0.1:{lost.port}"]["node_id"]
            replica = next(address for address, node in nodes.items() if node["master_id"] == lost_id)
            next(each for each in cluster.servers if replica.endswith(f":{each.port}")).kill()
            lost.kill()
            until(lambda: int(cluster_info(client)["cluster_slots_fail"]) > 0, "slots that nobody serves")
        findings = await check(cluster.url)

    problems = {each.subject: each.message for each in findings if each.level == "problem"}
    assert "of 16384 slots are served" in problems["cluster"]
    assert "does not answer" in problems[f"Redis 127.0.0.1:{lost.port}"]


async def test_a_cluster_that_is_not_there_and_a_server_that_is_none_are_told(redis_server: RedisServer) -> None:
    for port in (free_port(), redis_server.port):
        found = wrong(await check(f"redis+cluster://127.0.0.1:{port}"))
        assert found[-1] == ("cluster", "none of the nodes in REDIS_URL answers")


def test_clocks_that_go_apart_are_told_and_those_that_cannot_be_told_apart_are_not() -> None:
    looks = [Look(name="a", ahead=(-0.1, 0.1)), Look(name="b", ahead=(3.0, 8.0)), Look(name="c", trouble="down")]

    (finding,) = judge_clocks(looks)

    assert finding.message == "the clock of b is 3 s ahead of that of a"
    assert judge_clocks([Look(name="a", ahead=(-0.1, 0.1)), Look(name="b", ahead=(1.0, 8.0))]) == []


@pytest.mark.parametrize(
    ("about", "told"),
    [
        ({"redis_version": "6.0.16"}, "is version 6.0.16, and Fastlane needs 6.2"),
        ({"aof_last_write_status": "err"}, "could not write its append-only file"),
        ({"rdb_last_bgsave_status": "err"}, "could not write its snapshot"),
        ({"loading": 1}, "is still loading its data"),
    ],
)
def test_what_a_server_tells_of_itself_is_judged(about: dict[str, object], told: str) -> None:
    well = {"redis_version": "7.0.15", "role": "master", "aof_enabled": 1}

    _, finding = judge_server(Look(name="a", about={**well, **about}), is_master=True)

    assert finding.message == told


def test_a_replica_that_lost_its_master_is_told() -> None:
    about = {"redis_version": "7.0.15", "role": "slave", "aof_enabled": 1, "master_link_status": "down"}

    _, finding = judge_server(Look(name="a", about=about), is_master=False)

    assert (finding.level, finding.message) == ("warning", "has lost its master: what it holds grows old")
