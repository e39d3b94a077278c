"""The index from executions to lanes.

An entry is written before the item and removed after it, so an entry may lead nowhere but an item is never without
one. Each entry names the *placement* that it stands for, and so does the item. Whoever wants to remove or replace an
entry has the lane refuse its placement first: a put that was under way then begins anew, and no execution gets into two
lanes.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fastlane_core.builtin.redis.keys import Keys, shard_of
from fastlane_core.builtin.redis.servers import Servers, of_those_that_answer

#: Ids that one call looks at.
CHUNK = 500
_PLACEMENT_LENGTH = 16


@dataclass(frozen=True, slots=True)
class Entry:
    """Where an execution was put."""

    placement: str
    lane: str

    @classmethod
    def new(cls, lane: str) -> Entry:
        """Of an execution that is about to be put there."""
        return cls(secrets.token_hex(_PLACEMENT_LENGTH // 2), lane)

    @classmethod
    def decode(cls, value: bytes) -> Entry:
        """As it is stored."""
        text = value.decode()
        return cls(text[:_PLACEMENT_LENGTH], text[_PLACEMENT_LENGTH:])

    def encode(self) -> str:
        """To be stored."""
        return self.placement + self.lane


class ExecutionIndex:
    """Entries by execution id, spread over shards."""

    def __init__(self, servers: Servers, keys: Keys) -> None:
        self._servers = servers
        self._keys = keys

    async def enter(self, entries: Mapping[str, Entry]) -> Mapping[str, Entry]:
        """Add entries, and return those that stand: older ones stay as they are."""
        found: dict[str, Entry] = {}

        async def enter(shard: int, ids: Sequence[str]) -> None:
            pairs = [text for each in ids for text in (each, entries[each].encode())]
            values = await self._servers.run("index_enter", self._keys.shard(shard), pairs)
            found.update(zip(ids, map(Entry.decode, values), strict=True))

        await asyncio.gather(*(enter(shard, ids) for shard, ids in _by_shard(entries)))
        return found

    async def find(self, execution_ids: Iterable[str]) -> Mapping[str, Entry]:
        """The entries that there are."""
        found: dict[str, Entry] = {}
        for entries in await asyncio.gather(*(self._find(shard, ids) for shard, ids in _by_shard(execution_ids))):
            found.update(entries)
        return found

    async def find_what_answers(self, execution_ids: Iterable[str]) -> tuple[Mapping[str, Entry], frozenset[str]]:
        """The entries in shards that answer, and the ids of which nothing is known."""
        asked = list(_by_shard(execution_ids))
        answers = await of_those_that_answer({place: self._find(*each) for place, each in enumerate(asked)})
        found = {each: entry for entries in answers.values() for each, entry in entries.items()}
        return found, frozenset(each for place, (_, ids) in enumerate(asked) if place not in answers for each in ids)

    async def replace(self, changes: Iterable[tuple[str, Entry, Entry | None]]) -> None:
        """Put another entry, or none, in the place of an expected one; one that is not as expected stays."""
        by_id = {execution_id: (expected, new) for execution_id, expected, new in changes}

        async def replace(shard: int, ids: Sequence[str]) -> None:
            triples = []
            for each in ids:
                expected, new = by_id[each]
                triples += [each, expected.encode(), new.encode() if new else ""]
            await self._servers.run("index_replace", self._keys.shard(shard), triples)

        await asyncio.gather(*(replace(shard, ids) for shard, ids in _by_shard(by_id)))

    async def _find(self, shard: int, ids: Sequence[str]) -> Mapping[str, Entry]:
        key = self._keys.shard(shard)[0]
        values = await self._servers.call(lambda client, _: client.execute_command("HMGET", key, *ids), key=key)
        return {each: Entry.decode(value) for each, value in zip(ids, values, strict=True) if value}

    async def scan(self, shard: int, cursor: int) -> tuple[int, Mapping[str, Entry]]:
        """Some entries of a shard, and where to go on; 0 at the end."""
        key = self._keys.shard(shard)[0]
        following, found = await self._servers.call(
            lambda client, _: client.execute_command("HSCAN", key, cursor, "COUNT", CHUNK), key=key
        )
        pairs = found.items() if isinstance(found, dict) else zip(found[::2], found[1::2], strict=True)
        return int(following), {each.decode(): Entry.decode(value) for each, value in pairs}


def _by_shard(execution_ids: Iterable[str]) -> Iterable[tuple[int, Sequence[str]]]:
    shards: dict[int, dict[str, None]] = {}
    for each in execution_ids:
        shards.setdefault(shard_of(each), {})[each] = None
    for shard, ids in shards.items():
        for chunk in chunks(list(ids), CHUNK):
            yield shard, chunk


def chunks(items: Sequence[str], size: int) -> Iterable[Sequence[str]]:
    """The items, so many at a time."""
    return (items[start : start + size] for start in range(0, len(items), size))
