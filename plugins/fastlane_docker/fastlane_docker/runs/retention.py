"""Pruning on a schedule: each host by one worker at a time, whichever comes first.

A host's turn is one record in the storage, which tells when it was last taken; whoever replaces it has the turn.
Nothing is given back, so a worker that dies costs the host no more than that turn.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

import structlog

from fastlane_core.contracts.runner import PruneReport
from fastlane_core.contracts.storage import SharedValue, Storage
from fastlane_core.errors import RevisionConflict, StorageUnavailable

log = structlog.get_logger(__name__)

_SCOPE = "docker.pruned"
#: Hosts that one worker prunes at a time.
_AT_ONCE = 8
#: Looks at whose turn it is, between two turns of a host.
_LOOKS = 5
#: Seconds between two turns: this part of the time for which containers are kept, within these bounds.
_PART, _SHORTEST, _LONGEST = 0.1, 60.0, 3600.0


def turn_seconds(keep_seconds: float) -> float:
    """How often each host is pruned of containers that are kept for `keep_seconds`."""
    return min(max(keep_seconds * _PART, _SHORTEST), _LONGEST)


class Retention:
    """One worker's part in pruning all hosts every so often."""

    def __init__(
        self,
        storage: Storage,
        hosts: Sequence[str],
        prune: Callable[[str], Awaitable[PruneReport]],
        *,
        clock: Callable[[], float],
        every: float,
    ) -> None:
        """`prune` prunes one host, within `every` seconds."""
        self._storage = storage
        self._hosts = hosts
        self._prune = prune
        self._clock = clock
        self._every = every

    async def run(self) -> None:
        """Prune at intervals until cancelled."""
        while True:
            await asyncio.sleep(self._every / _LOOKS)
            try:
                await self.prune_due()
            except StorageUnavailable as error:
                log.warning("cannot learn which Docker hosts are to be pruned", error=str(error))
            except Exception:
                log.exception("pruning crashed; it goes on at the next turn")

    async def prune_due(self) -> None:
        """Prune the hosts whose turn it is, unless another worker does. Raises StorageUnavailable."""
        taken = await self._storage.list_state(_SCOPE)
        due = [host for host in self._hosts if self._is_due(taken.get(host))]
        random.shuffle(due)
        waiting = iter(due)
        async with asyncio.TaskGroup() as group:
            for _ in range(_AT_ONCE):
                group.create_task(self._take(waiting, taken))

    async def _take(self, waiting: Iterator[str], taken: Mapping[str, SharedValue]) -> None:
        for host in waiting:
            last = taken.get(host)
            try:
                revision = 0 if last is None else last.revision
                await self._storage.put_state(_SCOPE, host, {"at": self._clock()}, revision=revision)
            except RevisionConflict:
                # Another worker was first.
                continue
            except StorageUnavailable as error:
                log.warning("cannot take a Docker host's turn to be pruned", host=host, error=str(error))
                return
            report = await self._prune(host)
            if report.runs:
                log.info("removed processed containers", host=host, count=len(report.runs))
            if report.error:
                log.warning("a Docker host could not be pruned", host=host, error=report.error)

    def _is_due(self, last: SharedValue | None) -> bool:
        at = last.value.get("at") if last is not None else None
        # Far ahead is the time of a worker whose clock was wrong.
        return not isinstance(at, int | float) or abs(self._clock() - at) >= self._every
