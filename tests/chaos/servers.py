"""Storage and queue for a storm: SQLite, or MongoDB and three Redis servers with their sentinels."""

from __future__ import annotations

import contextlib
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import redis

from tests.chaos.deployment import Beneath, InVain
from tests.end_to_end.service import until
from tests.services.fixtures import require_redis, started_mongo
from tests.services.mongodb import MongoServer
from tests.services.redis_server import RedisServer, SentinelGroup

#: Seconds for sentinels to agree: ones that get no time to run do nothing for half a minute.
_PATIENCE = 120.0


def on_sqlite(folder: Path) -> Beneath:
    """One file: nothing that could be hurt apart from the processes that use it."""
    return Beneath(settings={"SQLITE_PATH": str(folder / "fastlane.db")})


@contextlib.contextmanager
def on_mongo_and_redis(folder: Path) -> Iterator[Beneath]:
    """MongoDB and Redis under sentinels, and the ways in which they die, lose data and change masters."""
    require_redis()
    with started_mongo() as mongo, SentinelGroup(folder / "redis") as sentinels:
        settings = {
            "STORAGE": "mongo",
            "MONGODB_URL": mongo.url,
            "QUEUE": "redis",
            "REDIS_URL": sentinels.url,
            "REDIS_TIMEOUT_SECONDS": 2.0,
        }
        damages = {
            "restart of MongoDB": lambda chance: _restart_mongo(mongo, chance),
            "restart of Redis without its data": lambda chance: _restart_redis(sentinels, chance),
            "FLUSHALL of Redis": lambda chance: _flush(sentinels),
            "failover of Redis": lambda chance: _fail_over(sentinels),
        }
        yield Beneath(settings=settings, damages=damages)


def _restart_mongo(mongo: MongoServer, chance: random.Random) -> None:
    mongo.kill()
    time.sleep(chance.uniform(0.1, 2.0))
    mongo.start()


def _restart_redis(sentinels: SentinelGroup, chance: random.Random) -> None:
    # Sooner than its sentinels take it for down: the same server is master again, and has nothing.
    master = _master(sentinels)
    master.kill()
    time.sleep(chance.uniform(0.0, 0.4))
    master.start()


def _flush(sentinels: SentinelGroup) -> None:
    try:
        with _master(sentinels).client() as client:
            client.flushall()
    except redis.RedisError as error:
        raise InVain from error


def _fail_over(sentinels: SentinelGroup) -> None:
    master = _master(sentinels)
    master.kill()
    try:
        until("there is another master", lambda: master not in _named(sentinels), _PATIENCE, 0.2)
    except AssertionError as error:
        raise InVain from error
    finally:
        master.start()


def _master(sentinels: SentinelGroup) -> RedisServer:
    """The master by most of the sentinels, once it knows of it and no failover is under way.

    Not by all: one whose failover is overtaken by another's may keep its own result, under the same epoch, for good.
    Clients find the master all the same, as they ask whom a sentinel names.
    """

    def agreed() -> RedisServer | None:
        named, votes = Counter(_named(sentinels)).most_common(1)[0]
        if 2 * votes <= len(sentinels.sentinels) or sentinels.is_failing_over():
            return None
        with contextlib.suppress(redis.RedisError), named.client() as client:
            if client.info("replication")["role"] == "master":
                return named
        return None

    found: RedisServer = until("most sentinels agree on a master", agreed, _PATIENCE, 0.2)
    return found


def _named(sentinels: SentinelGroup) -> list[RedisServer]:
    """The master by each of the sentinels."""
    return [sentinels.master_by(each) for each in sentinels.sentinels]
