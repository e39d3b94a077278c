"""Circuit breakers (M. Nygard, "Release It!"), one per host and shared by all workers through the storage.

Each worker counts its own failures in a row to reach an engine, those of each kind of call apart: an engine on which
nothing can be started may well answer pings. The worker that reaches the limit opens the circuit for all. An open
circuit keeps new runs away from the host; runs that are there are looked after all the same. After the reset time one
worker probes the engine (half-open): an answer closes the circuit, no answer opens it again. The probe is a ping; where
other calls had failed it proves little, and the next failure of their kind opens the circuit once more.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from enum import StrEnum

import structlog

from fastlane_core.contracts.storage import SharedValue
from fastlane_core.errors import RevisionConflict
from fastlane_core.hookspecs import RunnerContext
from fastlane_core.models import Event, EventKind
from fastlane_docker.engines.engine import Kind

log = structlog.get_logger(__name__)

_SCOPE = "docker.circuits"
#: Seconds after which a probe whose worker died may be made by another.
_PROBE_SECONDS = 30.0


class Circuit(StrEnum):
    """The three states."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


@dataclass(frozen=True, kw_only=True, slots=True)
class Break:
    """A circuit that is not closed."""

    circuit: Circuit
    #: When it came into this state, as Unix time.
    since: float
    #: What the failures were.
    why: str
    #: Which calls failed.
    kind: Kind = Kind.PING
    #: Of the stored record; 0 until it is stored.
    revision: int = 0


class Circuits:
    """What one worker knows of all circuits, and adds to them."""

    def __init__(self, context: RunnerContext, *, max_fails: int, reset_seconds: float) -> None:
        self._storage = context.storage
        self._clock = context.clock
        self._emit = context.emit
        self._max_fails = max_fails
        self._reset_seconds = reset_seconds
        #: In a row, by host and kind of call.
        self._failures: dict[tuple[str, Kind], int] = {}
        self._breaks: dict[str, Break] = {}
        #: Set when there is something for `refresh` to store.
        self.news = asyncio.Event()

    def of(self, host: str) -> Break | None:
        """The host's circuit; None while it is closed."""
        return self._breaks.get(host)

    def worked(self, host: str, kind: Kind) -> None:
        """The engine answered a call."""
        self._failures.pop((host, kind), None)

    def failed(self, host: str, kind: Kind, why: str) -> None:
        """The engine could not be reached by a call."""
        if host in self._breaks:
            return
        failures = self._failures.get((host, kind), 0) + 1
        self._failures[host, kind] = failures
        if failures >= self._max_fails:
            self._breaks[host] = Break(circuit=Circuit.OPEN, since=self._clock(), why=why, kind=kind)
            self.news.set()

    async def refresh(self) -> None:
        """Store what this worker has opened, and learn what others did. Raises StorageUnavailable."""
        self.news.clear()
        for host, found in list(self._breaks.items()):
            if found.revision == 0:
                await self._change(host, found)
        stored = await self._storage.list_state(_SCOPE)
        fresh = {host: each for host, each in self._breaks.items() if each.revision == 0}
        known = fresh | {host: _break(value) for host, value in stored.items()}
        for host in self._breaks.keys() - known.keys():
            self._closed(host)
        self._breaks = known

    async def take_probe(self, host: str) -> bool:
        """Whether this worker is to see now if the host's engine answers. Raises StorageUnavailable."""
        found = self._breaks.get(host)
        if found is None or found.revision == 0:
            return False
        wait = self._reset_seconds if found.circuit is Circuit.OPEN else _PROBE_SECONDS
        if self._clock() < found.since + wait:
            return False
        return await self._change(host, replace(found, circuit=Circuit.HALF_OPEN, since=self._clock()))

    async def probed(self, host: str, why: str) -> None:
        """Tell the outcome of the probe that `take_probe` allowed: "" if the engine answered.

        Raises StorageUnavailable.
        """
        found = self._breaks.get(host)
        if found is None:
            return
        if why:
            await self._change(host, replace(found, circuit=Circuit.OPEN, since=self._clock(), why=why, kind=Kind.PING))
            return
        await self._storage.delete_state(_SCOPE, host)
        if host in self._breaks:
            self._closed(host)
            del self._breaks[host]
        self._tell(host, Circuit.CLOSED, "its engine answers again")

    def _closed(self, host: str) -> None:
        """Begin to count anew; what a ping proves nothing of has one failure left."""
        for kind in Kind:
            self._failures.pop((host, kind), None)
        if (kind := self._breaks[host].kind) is not Kind.PING:
            self._failures[host, kind] = self._max_fails - 1

    async def _change(self, host: str, wanted: Break) -> bool:
        """Write a circuit unless another worker has changed it meanwhile; whether it was written."""
        value = {
            "circuit": wanted.circuit.value,
            "since": wanted.since,
            "why": wanted.why,
            "kind": wanted.kind.value,
        }
        try:
            revision = await self._storage.put_state(_SCOPE, host, value, revision=wanted.revision)
        except RevisionConflict:
            if self._breaks.get(host) is wanted:
                # Another worker was first to open it: `refresh` learns of that.
                del self._breaks[host]
            return False
        self._breaks[host] = replace(wanted, revision=revision)
        self._tell(host, wanted.circuit, wanted.why)
        return True

    def _tell(self, host: str, circuit: Circuit, why: str) -> None:
        log.warning("a circuit changed", host=host, circuit=circuit, why=why)
        message = f"the circuit of the Docker host {host} is {circuit}: {why}"
        self._emit(Event(kind=EventKind.CIRCUIT_CHANGED, at=self._clock(), place=host, message=message))


def _break(stored: SharedValue) -> Break:
    since = stored.value.get("since")
    return Break(
        circuit=Circuit(str(stored.value.get("circuit", Circuit.OPEN))),
        since=float(since) if isinstance(since, int | float) else 0.0,
        why=str(stored.value.get("why", "")),
        kind=Kind(str(stored.value.get("kind", Kind.PING))),
        revision=stored.revision,
    )
