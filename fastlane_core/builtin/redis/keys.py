"""Names of keys. Whatever one script touches shares a hash tag, and so a slot of a cluster.

There is a group of keys per lane, one per shard of the index, and the registry. Each group can be lost by itself, so
each has a state of its own with a marker. Where one server holds everything there is one more, for limits; elsewhere
each lane has keys for them of its own.
"""

from __future__ import annotations

import zlib
from typing import Final
from urllib.parse import quote

#: Parts of the index from executions to lanes: over how many slots it spreads.
INDEX_SHARDS: Final = 16

_LANE_PARTS = (
    "waiting",
    "delayed",
    "leases",
    "items",
    "tokens",
    "placed",
    "places",
    "stopping",
    "refused",
    "held",
    "state",
)
_LIMIT_PARTS = ("counted", "behind", "capacities")


class Keys:
    """The keys of one deployment."""

    def __init__(self, deployment_id: str, *, together: bool = False) -> None:
        """`together`: one server holds everything, so limits need not be kept apart for each lane."""
        self._deployment = quote(deployment_id, safe="")
        self._lanes: dict[str, tuple[str, ...]] = {}
        self._limits = self._group("limits", *_LIMIT_PARTS) if together else ()
        self.registry = self._group("registry", "lanes", "state")
        #: Capacities that lanes take over when they are new.
        self.capacities = self._limits[-1] if together else self._group("registry", "capacities")[0]
        self._shards = [self._group(f"index:{shard}", "entries", "state") for shard in range(INDEX_SHARDS)]

    def lane(self, lane: str) -> tuple[str, ...]:
        """All keys of a lane, in the order in which its scripts take them."""
        keys = self._lanes.get(lane)
        if keys is None:
            name = f"lane:{quote(lane, safe='')}"
            limits = self._limits or self._group(name, *_LIMIT_PARTS)
            keys = self._lanes[lane] = (*self._group(name, *_LANE_PARTS), *limits)
        return keys

    def lane_state(self, lane: str) -> str:
        """The state of a lane; also the channel that tells of its changes."""
        return self.lane(lane)[_LANE_PARTS.index("state")]

    def lane_items(self, lane: str) -> str:
        """The items of a lane."""
        return self.lane(lane)[_LANE_PARTS.index("items")]

    def lane_places(self, lane: str) -> str:
        """Leases of a lane by place."""
        return self.lane(lane)[_LANE_PARTS.index("places")]

    def shard(self, number: int) -> tuple[str, ...]:
        """Entries and state of a shard of the index."""
        return self._shards[number]

    def topic(self, topic: str) -> str:
        """The channel of a topic."""
        return f"fastlane:{{{self._deployment}}}:topic:{topic}"

    def _group(self, name: str, *parts: str) -> tuple[str, ...]:
        return tuple(f"fastlane:{{{self._deployment}:{name}}}:{part}" for part in parts)


def shard_of(execution_id: str) -> int:
    """The number of the shard that knows an execution's lane."""
    return zlib.crc32(execution_id.encode()) % INDEX_SHARDS
