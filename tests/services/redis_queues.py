"""Redis queues as the tests build them."""

from __future__ import annotations

from fastlane_core.builtin.redis.queue import RedisQueue
from fastlane_core.builtin.redis.servers import ConnectionOptions, TlsFiles
from fastlane_core.builtin.redis.url import parse_redis_url


def redis_queue(
    url: str,
    deployment: str,
    *,
    sentinel_password: str | None = None,
    tls: TlsFiles = TlsFiles(),  # noqa: B008
    timeout: float = 10.0,
    connections: int = 8,
    upkeep_seconds: float = 5.0,
) -> RedisQueue:
    """One that is not opened yet."""
    options = ConnectionOptions(
        address=parse_redis_url(url),
        tls=tls,
        sentinel_username=None,
        sentinel_password=sentinel_password,
        timeout=timeout,
        connections=connections,
    )
    return RedisQueue(options, deployment_id=deployment, upkeep_seconds=upkeep_seconds)
