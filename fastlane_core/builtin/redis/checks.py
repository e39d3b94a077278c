"""What `fastlane doctor` is told of Redis beyond whether it answers: every server, the sentinels, the slots."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from redis.exceptions import RedisError, ResponseError

from fastlane_core.builtin.redis.server_checks import judge_clocks, judge_server, look_at
from fastlane_core.builtin.redis.servers import ConnectionOptions, Servers, ask
from fastlane_core.builtin.redis.url import Topology
from fastlane_core.hookspecs import Finding, Level

#: Seconds within which one server has to answer.
_SECONDS: Final = 10.0
_SLOTS: Final = 16_384

Host = tuple[str, int]


async def check_servers(options: ConnectionOptions, clock: Callable[[], float]) -> Sequence[Finding]:
    """Findings about all servers that the URL leads to."""
    servers = Servers(replace(options, timeout=min(options.timeout, _SECONDS)))
    hosts = options.address.hosts
    if options.address.topology is Topology.SENTINEL:
        return await _check_sentinels(servers, hosts, options.address.master, clock)
    if options.address.topology is Topology.CLUSTER:
        return await _check_cluster(servers, hosts, clock)
    look = await look_at(servers, None, options.address.place, clock)
    return judge_server(look, is_master=True)


# Sentinel


@dataclass(frozen=True, kw_only=True, slots=True)
class _Opinion:
    """What one sentinel says."""

    master: Host | None = None
    replicas: Sequence[Host] = ()
    #: Sentinels that have to agree on a failover, and those that there are.
    quorum: int = 0
    sentinels: int = 0
    #: What is wrong with it.
    trouble: str = ""


async def _check_sentinels(
    servers: Servers, hosts: Sequence[Host], name: str, clock: Callable[[], float]
) -> Sequence[Finding]:
    opinions = await asyncio.gather(*(_ask_sentinel(servers, host, name) for host in hosts))
    found: list[Finding] = []
    for host, opinion in zip(hosts, opinions, strict=True):
        if opinion.trouble:
            advice = "See whether it runs, and whether REDIS_URL and REDIS_SENTINEL_PASSWORD are right."
            subject = f"sentinel {_text(host)}"
            found.append(Finding(level=Level.WARNING, subject=subject, message=opinion.trouble, advice=advice))
    named = Counter(opinion.master for opinion in opinions if opinion.master is not None)
    if not named:
        advice = "Start the sentinels, or correct REDIS_URL: without one nobody knows where the master is."
        message = f"none of {len(hosts)} tells where the master {name} is"
        return [*found, Finding(level=Level.PROBLEM, subject="sentinels", message=message, advice=advice)]
    master, agree = named.most_common(1)[0]
    of_it = [opinion for opinion in opinions if opinion.master == master]
    sentinels, quorum = max(each.sentinels for each in of_it), max(each.quorum for each in of_it)
    found.append(_judge_agreement(name, master, agree=agree, sentinels=sentinels, quorum=quorum))
    replicas = max((each.replicas for each in of_it), key=len)
    looks = await asyncio.gather(*(look_at(servers, each, _text(each), clock) for each in (master, *replicas)))
    found += judge_server(looks[0], is_master=True)
    found += [each for look in looks[1:] for each in judge_server(look, is_master=False)]
    return [*found, *_judge_replicas(f"master {name}", len(replicas)), *judge_clocks(looks)]


async def _ask_sentinel(servers: Servers, host: Host, name: str) -> _Opinion:
    client = servers.client_of_sentinel(host)
    try:
        about = _pairs(await ask(client, "SENTINEL MASTER", name))
        replicas = [_pairs(each) for each in await ask(client, "SENTINEL REPLICAS", name)]
    except ResponseError as error:
        return _Opinion(trouble=f"does not tell of the master {name}: {error}")
    except (RedisError, OSError, TimeoutError) as error:
        return _Opinion(trouble=f"does not answer: {str(error) or type(error).__name__}")
    finally:
        await client.aclose()
    return _Opinion(
        master=(about["ip"], int(about["port"])),
        replicas=[(each["ip"], int(each["port"])) for each in replicas],
        quorum=int(about["quorum"]),
        sentinels=int(about["num-other-sentinels"]) + 1,
        trouble="takes the master for down" if "o_down" in about["flags"] else "",
    )


def _judge_agreement(name: str, master: Host, *, agree: int, sentinels: int, quorum: int) -> Finding:
    message = f"{agree} of {sentinels} agree that the master {name} is {_text(master)}; a failover needs {quorum}"
    level, advice = Level.OK, ""
    if agree < max(quorum, sentinels // 2 + 1):
        level = Level.WARNING
        message += ", and a majority of them"
        advice = "Start the others and name all in REDIS_URL: without them nobody replaces a master that fails."
    elif sentinels < 3:
        level = Level.WARNING
        advice = "Run three or more: when one of these is down, nobody replaces a master that fails."
    return Finding(level=level, subject="sentinels", message=message, advice=advice)


def _judge_replicas(subject: str, replicas: int) -> Sequence[Finding]:
    if replicas:
        return []
    advice = "Add a replica, so that another server takes over when this one fails."
    return [Finding(level=Level.WARNING, subject=subject, message="has no replica", advice=advice)]


# Cluster


async def _check_cluster(servers: Servers, hosts: Sequence[Host], clock: Callable[[], float]) -> Sequence[Finding]:
    found: list[Finding] = []
    for host in hosts:
        client = servers.client_of(host)
        try:
            state = await ask(client, "CLUSTER INFO")
            nodes = await ask(client, "CLUSTER NODES")
        except (RedisError, OSError, TimeoutError) as error:
            message = f"does not answer: {str(error) or type(error).__name__}"
            advice = "See whether it runs in cluster mode, and whether REDIS_URL leads to it."
            subject = f"Redis {_text(host)}"
            found.append(Finding(level=Level.WARNING, subject=subject, message=message, advice=advice))
        else:
            return [*found, *_judge_slots(state), *await _check_nodes(servers, nodes, clock)]
        finally:
            await client.aclose()
    advice = "Start the cluster, or correct REDIS_URL."
    message = "none of the nodes in REDIS_URL answers"
    return [*found, Finding(level=Level.PROBLEM, subject="cluster", message=message, advice=advice)]


def _judge_slots(state: Mapping[str, str]) -> Sequence[Finding]:
    served = int(state.get("cluster_slots_ok", 0))
    message = f"{served} of {_SLOTS} slots are served, the state is {state.get('cluster_state')}"
    if served == _SLOTS and state.get("cluster_state") == "ok":
        return [Finding(level=Level.OK, subject="cluster", message=message)]
    advice = "Bring the masters of the missing slots back, or give their slots to others: lanes there stand still."
    return [Finding(level=Level.PROBLEM, subject="cluster", message=message, advice=advice)]


async def _check_nodes(
    servers: Servers, nodes: Mapping[str, Mapping[str, Any]], clock: Callable[[], float]
) -> Sequence[Finding]:
    known = {each: node for each, node in nodes.items() if "noaddr" not in node["flags"]}
    followers = Counter(node["master_id"] for node in known.values() if "fail" not in node["flags"])
    looks = await asyncio.gather(*(look_at(servers, _host(each), each, clock) for each in known))
    found: list[Finding] = []
    for look, node in zip(looks, known.values(), strict=True):
        is_master = "master" in node["flags"].split(",")
        found += judge_server(look, is_master=is_master)
        if is_master and node["slots"]:
            found += _judge_replicas(f"Redis {look.name}", followers[node["node_id"]])
    return [*found, *judge_clocks(looks)]


def _host(address: str) -> Host:
    host, _, port = address.rpartition(":")
    return host, int(port)


def _text(host: Host) -> str:
    return f"{host[0]}:{host[1]}"


def _pairs(found: Any) -> Mapping[str, str]:
    """What a sentinel tells of a server, whichever way the library has read it."""
    if isinstance(found, list):
        found = dict(zip(found[::2], found[1::2], strict=True))
    return {_decoded(key): _decoded(value) for key, value in found.items()}


def _decoded(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
