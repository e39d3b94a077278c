"""MongoDB and Redis for a simulation: real servers, but that Redis takes the time from a key instead of its clock."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pymongo
import pytest
import redis

from fastlane_core.builtin.mongo.server import MongoServer
from fastlane_core.builtin.mongo.storage import MongoStorage
from fastlane_core.builtin.redis import servers as redis_servers
from fastlane_core.builtin.redis.scripts import Script, script
from fastlane_core.testing.examples import new_id
from tests.integration.simulated_servers import Servers
from tests.services.redis_queues import redis_queue

_CLOCK_KEY = "simulated-clock"
_REAL_CLOCK = """\
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1000000
"""
_NEVER = 1e9


def simulate_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the scripts that queues run from now on go by the simulation's time."""

    def simulated(name: str) -> Script:
        source = script(name).source.replace(_REAL_CLOCK, f"  return tonumber(redis.call('GET', '{_CLOCK_KEY}'))\n")
        assert "'TIME'" not in source
        return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())

    monkeypatch.setattr(redis_servers, "script", simulated)


class MongoAndRedis(Servers):
    """A database that is emptied, and keys under a name of their own, for each simulation."""

    def __init__(self, mongo_url: str, redis_url: str) -> None:
        self._redis_url = redis_url
        self._redis = redis.Redis.from_url(redis_url)
        self._mongo = pymongo.MongoClient[dict[str, object]](mongo_url)
        self._server = MongoServer(url=mongo_url, database=f"fastlane_{new_id()}")
        self._shown: float | None = None

    async def begin(self, clock: Callable[[], float]) -> None:
        self._clock, self._shown = clock, None
        self.storage = MongoStorage(self._server, timeout=60.0)
        await self.storage.open()
        self._empty_database()
        self._deployment = new_id()
        self.queue = redis_queue(self._redis_url, self._deployment, timeout=60.0, upkeep_seconds=_NEVER)
        await self.queue.open()

    async def before_call(self) -> None:
        now = self._clock()
        if now != self._shown:
            self._redis.set(_CLOCK_KEY, f"{now:.6f}")
            self._shown = now

    async def lose_queue(self) -> None:
        for key in self._redis.scan_iter(match=f"*{self._deployment}*", count=1000):
            self._redis.delete(key)

    async def end(self) -> None:
        await self.queue.close()
        await self.lose_queue()
        await self.storage.close()

    def close(self) -> None:
        """Leave nothing behind."""
        self._mongo.drop_database(self._server.database)
        self._mongo.close()
        self._redis.close()

    def _empty_database(self) -> None:
        database = self._mongo[self._server.database]
        for name in database.list_collection_names():
            if name != "schema":
                database[name].delete_many({})
