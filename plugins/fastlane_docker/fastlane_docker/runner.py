"""The runner `docker`: each run is a container, named after its execution, on a host of its task's farm."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import structlog
from docker.errors import APIError, NotFound

from fastlane_core.contracts.runner import (
    Availability,
    Capabilities,
    Lane,
    OwnedRun,
    ProgressCallback,
    PruneReport,
    Runner,
)
from fastlane_core.errors import EngineUnavailable, ImageNotFound, RunNotFound, StartRejected
from fastlane_core.hookspecs import RunnerContext
from fastlane_core.models import JsonObject, Output, RunHandle, RunOutcome, RunRequest
from fastlane_docker import containers
from fastlane_docker.addresses import Address, parse_address
from fastlane_docker.engine import Client, Engine, explanation
from fastlane_docker.logs import read_log
from fastlane_docker.pulling import Puller
from fastlane_docker.settings import DockerSettings, lane_name
from fastlane_docker.watching import Watcher

log = structlog.get_logger(__name__)

T = TypeVar("T")

_HANDLE_VERSION = 1
#: Seconds after which a run that is waited for is looked at again, should its event be lost.
_LOOK_AGAIN_SECONDS = 60.0


class DockerRunner(Runner):
    """Runs on the engines of all farms."""

    name = "docker"
    capabilities = Capabilities(detached=True, prune=True)

    @classmethod
    def create(cls, context: RunnerContext) -> DockerRunner:
        """The runner that the settings describe."""
        return cls(context.settings.section(DockerSettings), context.deployment_id)

    def __init__(self, settings: DockerSettings, deployment_id: str) -> None:
        self._settings = settings
        self._deployment_id = deployment_id
        self._farms = [
            (re.compile(farm.match), Lane(name=lane_name(number, farm), capacity=farm.maxRunning))
            for number, farm in enumerate(settings.docker_hosts)
        ]
        self._hosts: dict[str, list[Address]] = {
            lane_name(number, farm): [parse_address(host) for host in farm.hosts]
            for number, farm in enumerate(settings.docker_hosts)
        }
        self._addresses = {address.key: address for hosts in self._hosts.values() for address in hosts}
        self._engines: dict[str, Engine] = {}
        self._watchers: dict[str, Watcher] = {}
        self._pullers: dict[str, Puller] = {}
        self._pings: list[asyncio.Task[None]] = []

    # Routing, from the settings alone

    def lanes(self) -> Sequence[Lane]:
        return [lane for _, lane in self._farms]

    def lane_for(self, task_id: str) -> str | None:
        return next((lane.name for pattern, lane in self._farms if pattern.match(task_id)), None)

    def routing_help(self) -> str:
        farms = ", ".join(f"{lane.name} takes {pattern.pattern!r}" for pattern, lane in self._farms)
        return f"Docker farms by the start of the task's id: {farms}."

    # Hosts

    async def open(self) -> None:
        for key in self._addresses:
            self._engine(key)
        self._pings = [asyncio.create_task(self._keep_pinging(engine)) for engine in self._engines.values()]

    async def close(self) -> None:
        for ping in self._pings:
            ping.cancel()
        await asyncio.gather(*self._pings, return_exceptions=True)
        for puller in self._pullers.values():
            await puller.close()
        for watcher in self._watchers.values():
            watcher.close()
        for engine in self._engines.values():
            engine.close()

    async def availability(self, lane: str) -> Availability:
        capacity = next(each.capacity for each in self.lanes() if each.name == lane)
        troubles = {address.key: self._engine(address.key).trouble for address in self._hosts[lane]}
        return Availability(
            places={key: capacity for key, trouble in troubles.items() if not trouble},
            reason="; ".join(trouble for trouble in troubles.values() if trouble),
        )

    async def rank(self, lane: str, image: str, loads: Mapping[str, int]) -> Sequence[str]:
        places = list((await self.availability(lane)).places)
        random.shuffle(places)
        return sorted(places, key=lambda place: loads.get(place, 0))

    async def health(self) -> JsonObject:
        return {
            "hosts": [
                {
                    "host": engine.address.host,
                    "port": engine.address.port,
                    "available": not engine.trouble,
                    "blacklisted": False,
                    "circuit": "closed",
                    "error": engine.trouble or None,
                }
                for engine in self._engines.values()
            ]
        }

    # Runs

    async def prepare(self, request: RunRequest, progress: ProgressCallback) -> None:
        key = request.place
        engine = self._engine(key)
        if key not in self._pullers:
            self._pullers[key] = Puller(engine, self._settings.docker_pull_timeout_seconds)
        await self._pullers[key].ensure(request.spec.image, progress)

    async def start(self, request: RunRequest) -> RunHandle:
        engine = self._engine(request.place)
        container = await engine.call("start", lambda client: self._start(client, request))
        return self._handle(engine, container)

    async def wait(self, handle: RunHandle) -> RunOutcome:
        engine, container = self._located(handle)
        async with self._watcher(engine).woken_for(container) as wake:
            while True:
                wake.clear()
                state = await self._on_container(handle, "wait", lambda client: _state(client, container))
                if containers.has_ended(state):
                    return containers.outcome(state)
                with suppress(TimeoutError):
                    await asyncio.wait_for(wake.wait(), _LOOK_AGAIN_SECONDS)

    async def stop(self, handle: RunHandle, grace: float) -> None:
        container = self._located(handle)[1]

        def stop(client: Client) -> None:
            # The SDK's own `stop` adds the grace to its usual time-out; it answers when the container is dead.
            client.stop(container, timeout=max(0, round(grace)))

        await self._on_container(handle, "stop", stop, long=True)

    async def logs(self, handle: RunHandle, *, after: str | None, follow: bool) -> AsyncIterator[Output]:
        engine, container = self._located(handle)
        async for output in read_log(engine, container, after=after, follow=follow):
            yield output

    async def finish(self, handle: RunHandle) -> None:
        engine, container = self._located(handle)
        name = str(handle.data["name"])

        def rename(client: Client) -> None:
            try:
                client.rename(container, name.replace(containers.NAME_PREFIX, containers.DEFUNCT_PREFIX, 1))
            except NotFound:
                return
            except APIError as error:
                # It bears that name already.
                if error.status_code not in (400, 409):
                    raise

        await engine.call("rename", rename)

    async def list_owned(self, place: str) -> AsyncIterator[OwnedRun]:
        engine = self._engine(place)
        found = await engine.call("list", self._list)
        for each in found:
            names = [str(name).lstrip("/") for name in each["Names"] or []]
            labels = each["Labels"]
            if any(name.startswith(containers.DEFUNCT_PREFIX) for name in names):
                continue
            yield OwnedRun(
                execution_id=labels[containers.LABEL_EXECUTION],
                fence=int(labels.get(containers.LABEL_FENCE, 0)),
                handle=self._handle(engine, (each["Id"], names[0] if names else "")),
                running=each["State"] in ("running", "paused", "restarting"),
                created_at=float(each["Created"]),
            )

    async def prune(self, *, older_than: float, dry_run: bool) -> Sequence[PruneReport]:
        reports = [self._prune(key, older_than, dry_run) for key in self._addresses]
        return await asyncio.gather(*reports)

    # Inside

    async def _prune(self, key: str, older_than: float, dry_run: bool) -> PruneReport:
        def prune(client: Client) -> list[str]:
            removed = []
            for each in self._list(client):
                name = next(iter(each["Names"] or [""])).lstrip("/")
                if not name.startswith(containers.DEFUNCT_PREFIX):
                    continue
                with suppress(NotFound):
                    ended = containers.parse_time(_state(client, each["Id"])["FinishedAt"]) or float(each["Created"])
                    if time.time() - ended >= older_than:
                        if not dry_run:
                            client.remove_container(each["Id"], v=True, force=True)
                        removed.append(name)
            return removed

        try:
            return PruneReport(place=key, removed=await self._engine(key).long_call("prune", prune))
        except (EngineUnavailable, APIError) as error:
            return PruneReport(place=key, error=str(error))

    def _list(self, client: Client) -> list[dict[str, Any]]:
        label = f"{containers.LABEL_DEPLOYMENT}={self._deployment_id}"
        found: list[dict[str, Any]] = client.containers(all=True, filters={"label": [label]})
        return found

    def _start(self, client: Client, request: RunRequest) -> tuple[str, str]:
        """Create and start, or find what an earlier call made; its id and name."""
        name = containers.NAME_PREFIX + request.execution_id
        try:
            container = containers.create(client, request, self._settings)
        except NotFound as error:
            raise ImageNotFound(f"there is no image {request.spec.image}: {explanation(error)}") from error
        except APIError as error:
            if error.status_code != 409:
                raise self._rejected(request, error) from error
            container = self._own(client, name, request)
        state = _state(client, container)
        if state["Status"] != "created" or containers.could_not_start(state):
            return container, name
        try:
            client.start(container)
        except APIError as error:
            if containers.could_not_start(state := _state(client, container)) and state["ExitCode"] in (126, 127):
                # Its own command is at fault: that is how the run ended, and `wait` tells.
                return container, name
            if state["Status"] != "created":
                return container, name
            client.remove_container(container, force=True)
            raise self._rejected(request, error) from error
        return container, name

    def _own(self, client: Client, name: str, request: RunRequest) -> str:
        """The id of the container by that name, if it is this run's."""
        found = client.inspect_container(name)
        labels = found["Config"]["Labels"] or {}
        if labels.get(containers.LABEL_EXECUTION) != request.execution_id:
            raise StartRejected(f"{request.place} has a container {name} that is not Fastlane's; remove or rename it")
        return str(found["Id"])

    def _rejected(self, request: RunRequest, error: APIError) -> StartRejected:
        return StartRejected(f"the Docker engine {request.place} refused to start it: {explanation(error)}")

    async def _on_container(
        self, handle: RunHandle, what: str, work: Callable[[Client], T], *, long: bool = False
    ) -> T:
        engine, container = self._located(handle)
        try:
            return await (engine.long_call if long else engine.call)(what, work)
        except NotFound as error:
            raise RunNotFound(f"the Docker engine {engine.address.key} has no container {container[:12]}") from error

    async def _keep_pinging(self, engine: Engine) -> None:
        while True:
            before = engine.trouble
            await engine.ping()
            if engine.trouble and not before:
                log.warning("a Docker engine is out of reach", host=engine.address.key, error=engine.trouble)
            elif before and not engine.trouble:
                log.info("a Docker engine is back", host=engine.address.key)
            await asyncio.sleep(self._settings.docker_ping_seconds)

    def _engine(self, key: str) -> Engine:
        if key not in self._engines:
            # A host that the settings do not name any more may still have runs to look after.
            address = self._addresses.get(key) or parse_address(key)
            self._engines[key] = Engine(address, self._settings.docker_timeout_seconds)
        return self._engines[key]

    def _watcher(self, engine: Engine) -> Watcher:
        key = engine.address.key
        if key not in self._watchers:
            self._watchers[key] = Watcher(engine, f"{containers.LABEL_DEPLOYMENT}={self._deployment_id}")
        return self._watchers[key]

    def _handle(self, engine: Engine, container: tuple[str, str]) -> RunHandle:
        data = {"host": engine.address.key, "container": container[0], "name": container[1]}
        return RunHandle(runner=self.name, version=_HANDLE_VERSION, data=data)

    def _located(self, handle: RunHandle) -> tuple[Engine, str]:
        if handle.version != _HANDLE_VERSION:
            raise RunNotFound(f"its handle is of version {handle.version}, which this fastlane-docker cannot read")
        return self._engine(str(handle.data["host"])), str(handle.data["container"])


def _state(client: Client, container: str) -> dict[str, Any]:
    state: dict[str, Any] = client.inspect_container(container)["State"]
    return state
