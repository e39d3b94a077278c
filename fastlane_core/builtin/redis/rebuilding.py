"""Telling that data was lost, and that everything was put back.

Each group of keys (the registry of lanes, each shard of the index, each lane) lies in one slot, so in a cluster it can
be lost by itself. Its state holds a random *generation* once it is whole. A lane without one grants nothing.

A loss that is found gets a name of its own. What was put back counts only if the same loss is still there in the end:
otherwise the data was lost once more meanwhile.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence

from fastlane_core.builtin.redis.index import ExecutionIndex
from fastlane_core.builtin.redis.keys import INDEX_SHARDS, Keys
from fastlane_core.builtin.redis.lanes import Lanes
from fastlane_core.builtin.redis.servers import Servers


class Rebuilding:
    """The markers of one deployment, and the registry of its lanes."""

    def __init__(self, servers: Servers, keys: Keys, lanes: Lanes, index: ExecutionIndex) -> None:
        self._servers = servers
        self._keys = keys
        self._lanes = lanes
        self._index = index
        #: Losses that this process has found, by key of the state.
        self._losses: dict[str, str] = {}
        #: Lanes that this process has registered.
        self._known: set[str] = set()

    async def lanes(self) -> Sequence[str]:
        """Every lane that was ever put to."""
        key = self._keys.registry[0]
        found = await self._servers.call(lambda client, _: client.execute_command("SMEMBERS", key))
        return sorted(each.decode() for each in found)

    async def register(self, lane: str, *, again: bool = False) -> None:
        """Make the lane known, and ready to grant if it is new to a queue that is whole.

        A lane that this process knows is passed over, unless `again`.
        """
        if lane in self._known and not again:
            return
        for ready in (0, 1):
            registered = await self._servers.run("registry_register", self._keys.registry, [lane, ready])
            if registered:
                if registered > 1 and not self._servers.holds_all:
                    # After that `set_limit` knows the lane.
                    for key, capacity in (await self._lanes.limits()).items():
                        await self._lanes.set_limit(lane, key, capacity)
                break
            # Nothing of it can have been lost. Before it is registered: after that, being without a marker is a loss.
            await self._complete(self._keys.lane_state(lane))
        self._known.add(lane)

    async def register_again(self) -> None:
        """Make known once more what this process knows: the registry may have been lost by itself."""
        for lane in sorted(self._known):
            await self.register(lane, again=True)

    async def is_needed(self, *, note: bool = True) -> bool:
        """Whether anything was lost and not put back; `note` gives each loss a name, which `finish` needs."""
        states = [self._keys.registry[-1], *(self._keys.lane_state(lane) for lane in await self.lanes())]
        states += [self._keys.shard(number)[-1] for number in range(INDEX_SHARDS)]
        if not note:
            return not all(await asyncio.gather(*map(self._is_whole, states)))
        name = uuid.uuid4().hex
        found = await asyncio.gather(*(self._servers.run("marker_inspect", [state], [name]) for state in states))
        self._losses = {state: loss.decode() for state, loss in zip(states, found, strict=True) if loss}
        return bool(self._losses)

    async def _is_whole(self, state: str) -> bool:
        return bool(await self._servers.call(lambda client, _: client.execute_command("HEXISTS", state, "generation")))

    async def finish(self) -> None:
        """Everything was put back: mark what was lost as whole, unless it was lost once more."""
        losses, self._losses = self._losses, {}
        registry = self._keys.registry[-1]
        if not await self._complete(registry, losses.get(registry, "")):
            return
        lanes = await self.lanes()
        await self._restore_index(lanes, losses)
        for lane in lanes:
            state = self._keys.lane_state(lane)
            await self._complete(state, losses.get(state, ""))

    async def _restore_index(self, lanes: Sequence[str], losses: dict[str, str]) -> None:
        """Shards that were lost get the entries of what the lanes hold."""
        states = [self._keys.shard(number)[-1] for number in range(INDEX_SHARDS)]
        name = uuid.uuid4().hex
        found = await asyncio.gather(*(self._servers.run("marker_inspect", [state], [name]) for state in states))
        lost = {state: loss.decode() for state, loss in zip(states, found, strict=True) if loss}
        if not lost:
            return
        for lane in lanes:
            cursor = 0
            while True:
                cursor, entries = await self._lanes.scan(lane, cursor)
                await self._index.enter(entries)
                if not cursor:
                    break
        for state, loss in lost.items():
            await self._complete(state, losses.get(state, loss))

    async def _complete(self, state: str, loss: str = "") -> bool:
        return bool(await self._servers.run("marker_complete", [state], [uuid.uuid4().hex, loss]))
