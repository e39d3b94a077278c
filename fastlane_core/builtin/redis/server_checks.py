"""What is looked at in one Redis server, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from fastlane_core.builtin.redis.servers import OLDEST_SERVER, Servers, ask
from fastlane_core.hookspecs import Finding, Level

#: Seconds that the clocks of servers may differ by that take over from each other.
_SKEW: Final = 2.0
#: Share of the memory that may be used, from which it is warned.
_FULL: Final = 0.9
_RUNS = "See whether it runs, and whether user, password and TLS in the settings of Redis are right."


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """One server, looked at."""

    name: str
    #: What it tells of itself; empty where it does not answer.
    about: Mapping[str, Any] = field(default_factory=dict)
    #: Its setting `save`; None where the user may not ask for it.
    snapshots: str | None = None
    #: Replicas that must have what it takes (`min-replicas-to-write`), likewise.
    needed_replicas: int | None = None
    #: By how many seconds, at least and at most, its clock is ahead of this machine's.
    ahead: tuple[float, float] | None = None
    trouble: str = ""


async def look_at(servers: Servers, host: tuple[str, int] | None, name: str, clock: Callable[[], float]) -> Look:
    """Look at the server at `host`, or at the only one."""
    client = servers.client_of(host)
    try:
        about = await client.info("all")
        before = clock()
        seconds, microseconds = await ask(client, "TIME")
        after = clock()
        theirs = float(seconds) + float(microseconds) / 1_000_000
        snapshots = await _setting(client, "save")
        needed = await _setting(client, "min-replicas-to-write")
    except (RedisError, OSError, TimeoutError) as error:
        return Look(name=name, trouble=f"does not answer: {str(error) or type(error).__name__}")
    finally:
        await client.aclose()
    return Look(
        name=name,
        about=about,
        snapshots=snapshots,
        needed_replicas=None if needed is None else int(needed or 0),
        ahead=(theirs - after, theirs - before),
    )


async def _setting(client: Redis, name: str) -> str | None:
    try:
        found = await ask(client, "CONFIG GET", name)
    except ResponseError:
        # The queue's user needs no administrator's commands.
        return None
    pairs = found if isinstance(found, dict) else dict(zip(found[::2], found[1::2], strict=True))
    value = pairs.get(name, pairs.get(name.encode(), ""))
    return value.decode() if isinstance(value, bytes) else str(value)


def judge_server(look: Look, *, is_master: bool) -> Sequence[Finding]:
    """Findings about one server, that is to be a master or a replica."""
    subject = f"Redis {look.name}"
    if look.trouble:
        level = Level.PROBLEM if is_master else Level.WARNING
        return [Finding(level=level, subject=subject, message=look.trouble, advice=_RUNS)]
    about = look.about
    version, role = str(about.get("redis_version")), "master" if about.get("role") == "master" else "replica"
    replicas = f" of {about.get('connected_slaves', 0)} replicas" if role == "master" else ""
    answer = Finding(level=Level.OK, subject=subject, message=f"answers: Redis {version}, {role}{replicas}")
    wrong = [
        *_judge_state(about, version, is_master=is_master),
        *_judge_replication(look),
        *_judge_memory(about),
        *_judge_disk(look),
    ]
    return [
        answer,
        *(Finding(level=level, subject=subject, message=message, advice=advice) for level, message, advice in wrong),
    ]


def judge_clocks(looks: Sequence[Look]) -> Sequence[Finding]:
    """Whether the clocks of several servers agree with each other."""
    known = [(look.name, *look.ahead) for look in looks if look.ahead is not None]
    if len(known) < 2:
        return []
    first, least, _ = max(known, key=lambda each: each[1])
    last, _, most = min(known, key=lambda each: each[2])
    if least - most <= _SKEW:
        return []
    message = f"the clock of {first} is {least - most:.0f} s ahead of that of {last}"
    advice = "Have all of them set their clocks by NTP: leases run out early or late when another one takes over."
    return [Finding(level=Level.WARNING, subject="clocks of Redis", message=message, advice=advice)]


def _judge_state(about: Mapping[str, Any], version: str, *, is_master: bool) -> Iterator[tuple[Level, str, str]]:
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_SERVER:
        needed = ".".join(map(str, OLDEST_SERVER))
        yield Level.PROBLEM, f"is version {version}, and Fastlane needs {needed}", f"Bring it to {needed} or newer."
    if is_master and about.get("role") != "master":
        message = f"is a replica of {about.get('master_host')}:{about.get('master_port')}, and takes no writes"
        yield Level.PROBLEM, message, "Name the master in REDIS_URL, or its sentinels (redis+sentinel://)."
    if not is_master and about.get("master_link_status") == "down":
        message = "has lost its master: what it holds grows old"
        yield Level.WARNING, message, "See whether the two reach each other, and what their logs say."
    if about.get("loading") not in (None, 0):
        yield Level.WARNING, "is still loading its data", "Wait: it answers no call of the queue until then."


def _judge_replication(look: Look) -> Iterator[tuple[Level, str, str]]:
    replicas = int(look.about.get("connected_slaves", 0)) if look.about.get("role") == "master" else 0
    if not replicas or look.needed_replicas != 0:
        return
    message = (
        "takes writes while no replica follows (min-replicas-to-write 0): what it grants then is lost when one takes "
        "over, and a lane runs more than its capacity until that is mended"
    )
    advice = "Set min-replicas-to-write 1, and min-replicas-max-lag to a few seconds, on it and on its replicas."
    if replicas == 1:
        advice = f"Add a second replica: with one alone, the server that takes over has none. {advice}"
    yield Level.WARNING, message, advice


def _judge_memory(about: Mapping[str, Any]) -> Iterator[tuple[Level, str, str]]:
    policy, limit = about.get("maxmemory_policy", "noeviction"), int(about.get("maxmemory", 0))
    if policy != "noeviction":
        level = Level.PROBLEM if limit else Level.WARNING
        message = f"throws keys away when its memory is full (maxmemory-policy {policy}), and with them queued jobs"
        yield level, message, "Set maxmemory-policy noeviction."
    if limit and int(about.get("used_memory", 0)) > _FULL * limit:
        share = int(about["used_memory"]) / limit
        message = f"uses {share:.0%} of its memory; when it is full, jobs wait in the storage alone"
        yield Level.WARNING, message, "Raise maxmemory."


def _judge_disk(look: Look) -> Iterator[tuple[Level, str, str]]:
    about = look.about
    for key, what in (("aof_last_write_status", "append-only file"), ("rdb_last_bgsave_status", "snapshot")):
        if about.get(key, "ok") != "ok":
            yield Level.PROBLEM, f"could not write its {what}", "See its log, and whether its disk has room."
    if about.get("aof_enabled"):
        return
    if look.snapshots == "":
        # After a restart the queue is put back from the storage.
        return
    known = "" if look.snapshots else " if it takes any"
    message = f"has appendonly off: a restart brings the queue of its last snapshot back{known}"
    advice = 'Set appendonly yes; or take no snapshots (save ""), and the queue is put back from the storage.'
    yield Level.WARNING, message, advice
