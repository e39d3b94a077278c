"""The queue suite over Redis: a single server, Sentinel, and Cluster. The server's clock decides, so time passes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from fastlane_core.testing.examples import new_id
from fastlane_core.testing.queue_fixtures import Advance, BuildQueue
from fastlane_core.testing.queue_suite import QueueSuite
from tests.services.redis_queues import redis_queue
from tests.services.redis_server import ClusterGroup, RedisServer, SentinelGroup

pytestmark = pytest.mark.services


class RedisQueueSuite(QueueSuite):
    """The suite, each test with a deployment of its own."""

    @pytest.fixture
    def now(self) -> Callable[[], float]:
        return time.time

    @pytest.fixture
    def advance(self) -> Advance:
        return asyncio.sleep


class TestSingleServer(RedisQueueSuite):
    """Everything on one server."""

    @pytest.fixture
    def build_queue(self, redis_server: RedisServer) -> BuildQueue:
        deployment = new_id()
        return lambda: redis_queue(redis_server.url, deployment)


class TestSentinel(RedisQueueSuite):
    """Everything on a master that sentinels name, both with passwords."""

    @pytest.fixture
    def build_queue(self, redis_sentinels: SentinelGroup) -> BuildQueue:
        deployment = new_id()
        password = redis_sentinels.sentinel_password
        return lambda: redis_queue(redis_sentinels.url, deployment, sentinel_password=password)


class TestCluster(RedisQueueSuite):
    """Lanes, index and registry spread over three masters."""

    @pytest.fixture
    def counts_over_lanes(self) -> bool:
        return False

    @pytest.fixture
    def build_queue(self, redis_cluster: ClusterGroup) -> BuildQueue:
        deployment = new_id()
        return lambda: redis_queue(redis_cluster.url, deployment)
