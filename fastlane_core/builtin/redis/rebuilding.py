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
from typing import Final

from fastlane_core.builtin.redis.index import ExecutionIndex
from fastlane_core.builtin.redis.keys import INDEX_SHARDS, Keys
from fastlane_core.builtin.redis.lanes import Lanes
from fastlane_core.builtin.redis.servers import Servers, of_those_that_answer
from fastlane_core.errors import QueueUnavailable

#: The name of no loss.
_NO_LOSS: Final = "none"


class Rebuilding:
    """The markers of one deployment, and the registry of its lanes."""

    def __init__(self, servers: Servers, keys: Keys, lanes: Lanes, index: ExecutionIndex) -> None:
        self._servers = servers
        self._keys = keys
        self._lanes = lanes
        self._index = index
        #: Losses that this process has found, by key of the state.
        self._losses: dict[str, str] = {}
        #: States that were asked about when these were found.
        self._asked: frozenset[str] = frozenset()
        #: Lanes that were listed last.
        self._listed: Sequence[str] = ()
        #: Lanes that this process has registered.
        self._known: set[str] = set()

    async def lanes(self) -> Sequence[str]:
        """Every lane that was ever put to."""
        key = self._keys.registry[0]
        found = await self._servers.call(lambda client, _: client.execute_command("SMEMBERS", key), key=key)
        self._listed = sorted(each.decode() for each in found)
        return self._listed

    async def lanes_as_far_as_known(self) -> Sequence[str]:
        """`lanes`, or those that this process has heard of where the registry alone may be out of reach."""
        try:
            return await self.lanes()
        except QueueUnavailable:
            known = sorted({*self._listed, *self._known})
            if not known:
                raise
            return known

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
        """Whether anything was lost and not put back, as far as can be seen: what is out of reach grants nothing.

        `note` gives each loss a name, which `finish` needs.
        """
        lanes = await self.lanes_as_far_as_known()
        states = [self._keys.registry[-1], *map(self._keys.lane_state, lanes)]
        states += [self._keys.shard(number)[-1] for number in range(INDEX_SHARDS)]
        if not note:
            looked_at = await of_those_that_answer({state: self._is_whole(state) for state in states})
            return not all(looked_at.values())
        name = uuid.uuid4().hex
        calls = {state: self._servers.run("marker_inspect", [state], [name]) for state in states}
        found = await of_those_that_answer(calls)
        self._losses = {state: loss.decode() for state, loss in found.items() if loss}
        self._asked = frozenset(states)
        return bool(self._losses)

    async def _is_whole(self, state: str) -> bool:
        return bool(
            await self._servers.call(
                lambda client, _: client.execute_command("HEXISTS", state, "generation"), key=state
            )
        )

    async def finish(self) -> None:
        """Everything was put back: mark what was lost as whole, unless it was lost once more."""
        losses, self._losses = self._losses, {}
        # What was whole or out of reach when it was looked at, and is without a marker now, was not put back.
        losses = {**dict.fromkeys(self._asked, _NO_LOSS), **losses}
        registry = self._keys.registry[-1]
        if not await self._complete(registry, losses.get(registry, "")):
            return
        lanes = await self.lanes()
        await self._restore_index(lanes, losses)
        for lane in lanes:
            state = self._keys.lane_state(lane)
            await self._complete(state, losses.get(state, ""))
        self._asked = frozenset()

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
