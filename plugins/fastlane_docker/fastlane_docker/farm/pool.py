"""The hosts of all farms as one worker sees them: their engines, whether they answer, and which may take new runs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial

import structlog

from fastlane_core.contracts.runner import Availability
from fastlane_core.errors import StorageUnavailable
from fastlane_core.hookspecs import RunnerContext
from fastlane_core.models import Json
from fastlane_docker.engines.addresses import Address, parse_address
from fastlane_docker.engines.engine import Engine, Kind
from fastlane_docker.engines.loops import kept_going
from fastlane_docker.farm.circuits import Circuit, Circuits
from fastlane_docker.farm.cordons import Cordon, cordons
from fastlane_docker.farm.farms import Farm
from fastlane_docker.images.pulling import Puller
from fastlane_docker.runs.watching import Watcher
from fastlane_docker.settings import DockerSettings

log = structlog.get_logger(__name__)

#: Seconds between two looks at what other processes say of the hosts.
_REFRESH_SECONDS = 1.0
#: Most seconds between two pings of an engine that did not answer the last one.
_TROUBLED_PING_SECONDS = 1.0


class Pool:
    """Engines by the key of their host, made when they are needed."""

    def __init__(self, context: RunnerContext, settings: DockerSettings, addresses: Mapping[str, Address]) -> None:
        self._context = context
        self._settings = settings
        self._addresses = addresses
        self._circuits = Circuits(
            context,
            max_fails=settings.docker_circuit_breaker_max_fails,
            reset_seconds=settings.docker_circuit_breaker_reset_timeout_seconds,
        )
        self._cordons: Mapping[str, Cordon] = {}
        #: Hosts whose runs have been told of a drain that stops them.
        self._drained: set[str] = set()
        self._engines: dict[str, Engine] = {}
        self._watchers: dict[str, Watcher] = {}
        self._pullers: dict[str, Puller] = {}
        self._loops: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Begin to look after the hosts. An engine or a storage that is out of reach is no error."""
        await self._refresh()
        self._loops = [asyncio.create_task(kept_going("refresh of hosts", self._keep_refreshing))]
        for key in self._addresses:
            ping = partial(self._keep_pinging, self.engine(key))
            self._loops.append(asyncio.create_task(kept_going(f"ping {key}", ping)))
            listing = self.puller(key).known.keep_listing
            self._loops.append(asyncio.create_task(kept_going(f"images {key}", listing)))

    async def close(self) -> None:
        """Let go of threads and connections."""
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        for puller in self._pullers.values():
            await puller.close()
        for watcher in self._watchers.values():
            await watcher.close()
        for engine in self._engines.values():
            engine.close()

    def engine(self, host: str) -> Engine:
        """The engine of a host."""
        if host not in self._engines:
            # A host that the settings do not name any more may still have runs to look after.
            address = self._addresses.get(host) or parse_address(host)

            def heard(kind: Kind, why: str) -> None:
                if why:
                    self._circuits.failed(host, kind, why)
                else:
                    self._circuits.worked(host, kind)

            self._engines[host] = Engine(address, self._settings.docker_timeout_seconds, heard)
        return self._engines[host]

    def watcher(self, host: str) -> Watcher:
        """What hears of ended containers of the host."""
        if host not in self._watchers:
            self._watchers[host] = Watcher(
                self.engine(host),
                self._context.deployment_id,
                reconcile_seconds=self._settings.docker_reconcile_seconds,
            )
        return self._watchers[host]

    def puller(self, host: str) -> Puller:
        """What pulls the host's images."""
        if host not in self._pullers:
            self._pullers[host] = Puller(self.engine(host), self._settings)
        return self._pullers[host]

    # Which hosts may take new runs

    def availability(self, farm: Farm) -> Availability:
        """What the farm offers, as far as it is known here."""
        excuses = {host: self._excuse(host) for host in farm.hosts}
        places = {host: each.capacity for host, each in farm.hosts.items() if not excuses[host]}
        reachable = [host for host in farm.hosts if not self._trouble(host)]
        if not places and all(host in self._cordons for host in farm.hosts):
            reason = f"every host of farm {farm.name} is blacklisted"
            return Availability(places={}, reason=reason, reachable=reachable)
        return Availability(places=places, reason="; ".join(filter(None, excuses.values())), reachable=reachable)

    async def offered(self, farm: Farm) -> Sequence[str]:
        """The hosts that a new run may be placed on, with cordons as they are this very moment."""
        try:
            self._cordons = await cordons(self._context.storage)
        except StorageUnavailable as error:
            log.warning("placing a run by what was known of blacklisted hosts", error=str(error))
        return list(self.availability(farm).places)

    def drained(self, host: str) -> Cordon | None:
        """The drain by which runs on the host are to be stopped now."""
        cordon = self._cordons.get(host)
        return cordon if cordon is not None and cordon.stops_runs(self._context.clock()) else None

    def health(self) -> list[Json]:
        """Each host for `/status`."""
        return [self._health(self.engine(host)) for host in self._addresses]

    def _health(self, engine: Engine) -> Json:
        host = engine.address.key
        found, cordon = self._circuits.of(host), self._cordons.get(host)
        health: dict[str, Json] = {
            "host": engine.address.host,
            "port": engine.address.port,
            "place": host,
            "available": not self._excuse(host),
            "blacklisted": cordon is not None,
            "circuit": (found.circuit if found else Circuit.CLOSED).value,
            "error": "server is blacklisted" if cordon is not None else self._excuse(host) or None,
        }
        if cordon is not None and cordon.drains:
            health["drain"] = cordon.shape()
        return health

    def _excuse(self, host: str) -> str:
        """Why the host gets nothing new; "" if it may."""
        if host in self._cordons:
            return f"the Docker host {host} is blacklisted"
        return self._trouble(host)

    def _trouble(self, host: str) -> str:
        """Why the host's engine is out of reach; "" if it answers."""
        found = self._circuits.of(host)
        if found is not None:
            return f"the circuit of the Docker host {host} is {found.circuit}: {found.why}"
        return self.engine(host).trouble or ""

    # Loops

    async def _keep_refreshing(self) -> None:
        while True:
            try:
                async with asyncio.timeout(_REFRESH_SECONDS):
                    await self._circuits.news.wait()
            except TimeoutError:
                # Nothing of this worker's: see what others say.
                pass
            await self._refresh()

    async def _refresh(self) -> None:
        try:
            await self._circuits.refresh()
            self._cordons = await cordons(self._context.storage)
        except StorageUnavailable as error:
            log.warning("cannot learn what other workers know of the Docker hosts", error=str(error))
            await asyncio.sleep(_REFRESH_SECONDS)
        drained = {host for host in self._cordons if self.drained(host) is not None}
        for host in drained - self._drained:
            # Once: who begins to wait later looks by itself.
            if (watcher := self._watchers.get(host)) is not None:
                watcher.wake_all()
        self._drained = drained

    async def _keep_pinging(self, engine: Engine) -> None:
        host = engine.address.key
        while True:
            before = engine.trouble
            try:
                if self._circuits.of(host) is None:
                    await engine.ping()
                elif await self._circuits.take_probe(host):
                    await engine.ping()
                    await self._circuits.probed(host, engine.trouble or "")
            except StorageUnavailable as error:
                log.warning("a Docker host cannot be probed", host=host, error=str(error))
            if engine.trouble and not before:
                log.warning("a Docker engine is out of reach", host=host, error=engine.trouble)
                if (watcher := self._watchers.get(host)) is not None:
                    watcher.wake_all()
            elif before and not engine.trouble:
                log.info("a Docker engine is back", host=host)
            pause = self._settings.docker_ping_seconds
            await asyncio.sleep(min(pause, _TROUBLED_PING_SECONDS) if engine.trouble else pause)
