"""A client of a Redis cluster that goes on with the servers that answer."""

from __future__ import annotations

import asyncio
from typing import Any

import structlog
from redis.asyncio.cluster import RedisCluster
from redis.exceptions import RedisClusterException, RedisError

log = structlog.get_logger(__name__)


class Cluster(RedisCluster):
    """redis-py's, but calls to servers that answer do not wait until it was asked anew which server has what.

    redis-py asks after each call that fails, one server after the other, hanging ones included, while all calls wait.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._beginning = asyncio.Lock()
        self._refreshing: asyncio.Task[None] | None = None

    async def initialize(
        self,
        additional_startup_nodes_info: list[tuple[str, int]] | None = None,
        last_failed_node_name: str | None = None,
    ) -> Cluster:
        """Find out where everything is: the first time for this call, later for those that follow."""
        if not self._initialize:
            return self
        if not self._has_begun():
            async with self._beginning:
                if self._initialize:
                    await self._begin()
            return self
        self._initialize = False
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._refresh())
        return self

    async def stop(self) -> None:
        """Let go of all connections."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            # redis-py may drop a cancellation before Python 3.12; then it ends by its time-outs.
            await asyncio.wait([self._refreshing])
        await self.aclose()
        # After trouble the client takes itself for closed, and its connections stay.
        for kind in ("nodes_cache", "startup_nodes"):
            await self.nodes_manager.aclose(kind)

    def _has_begun(self) -> bool:
        """Whether it knows some servers; not after it was closed, which redis-py does by itself as well."""
        return bool(self.nodes_manager.default_node)

    async def _begin(self) -> None:
        try:
            await self.nodes_manager.initialize()
            await self._learn_commands()
        except BaseException:
            for kind in ("nodes_cache", "startup_nodes"):
                await self.nodes_manager.aclose(kind)
            raise
        self._initialize = False

    async def _learn_commands(self) -> None:
        """From a master that answers, which is the one for calls without keys from then on."""
        trouble: Exception | None = None
        for node in self.get_primaries():
            try:
                await self.commands_parser.initialize(node)
            except (RedisError, OSError) as error:
                trouble = error
                # The next one is tried first from now on.
                self.nodes_manager.move_node_to_end_of_cached_nodes(node.name)
            else:
                self.nodes_manager.default_node = node
                return
        if trouble is not None:
            raise trouble

    async def _refresh(self) -> None:
        try:
            await self.nodes_manager.initialize()
        except (RedisError, RedisClusterException, OSError) as error:
            # The next call that fails has it done once more.
            log.debug("no server of the cluster tells which one has what", error=str(error))
