"""The runner `docker`: each run is a container, named after its execution, on a host of its task's farm."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace
from typing import TypeVar

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
from fastlane_core.errors import EngineUnavailable, ImageNotFound, RunnerError, RunNotFound, StorageUnavailable
from fastlane_core.hookspecs import RunnerContext
from fastlane_core.models import JsonObject, Output, RunHandle, RunOutcome, RunRequest, RunSpec
from fastlane_docker.engines.certificates import check_files
from fastlane_docker.engines.client import Client
from fastlane_docker.engines.engine import Engine, Kind
from fastlane_docker.farm.farms import Farm, Farms
from fastlane_docker.farm.pool import Pool
from fastlane_docker.images.references import check_image
from fastlane_docker.logs.following import read_log
from fastlane_docker.options.policies import check_options, resolve
from fastlane_docker.runs import containers
from fastlane_docker.runs.endings import true_outcome
from fastlane_docker.runs.listing import CannotRemove, list_containers, remove
from fastlane_docker.runs.pruning import prune_engine
from fastlane_docker.runs.retention import Retention, turn_seconds
from fastlane_docker.runs.starting import start_run
from fastlane_docker.settings import DockerSettings

log = structlog.get_logger(__name__)

T = TypeVar("T")

_HANDLE_VERSION = 1
#: Seconds since an engine answered in which it is taken to be there still.
_LATELY = 0.25
#: Hosts pruned at a time, and seconds that one of them may take.
_PRUNED_AT_ONCE = 32
_PRUNE_SECONDS = 900.0


class DockerRunner(Runner):
    """Runs on the engines of all farms."""

    name = "docker"
    capabilities = Capabilities(detached=True, prune=True)

    def __init__(self, context: RunnerContext) -> None:
        self._settings = context.settings.section(DockerSettings)
        self._context = context
        self._deployment_id = context.deployment_id
        self._farms = Farms(self._settings)
        self._addresses = self._farms.addresses()
        #: Containers that core wanted stopped, until they are seen to have ended.
        self._stopped: set[str] = set()
        #: Containers that were started here, until they are processed.
        self._own: set[str] = set()
        #: Those of them that nobody has waited for yet.
        self._just_started: set[str] = set()
        self._pool = Pool(context, self._settings, self._addresses)
        self._retention: asyncio.Task[None] | None = None

    # Routing, from the settings alone

    def lanes(self) -> Sequence[Lane]:
        return [farm.lane for farm in self._farms]

    def lane_for(self, task_id: str) -> str | None:
        farm = self._farms.of_task(task_id)
        return farm.lane.name if farm else None

    def routing_help(self) -> str:
        return self._farms.routing_help()

    def check(self, lane: str, spec: RunSpec) -> None:
        check_image(spec.image)
        check_options(self._farms.of_lane(lane), spec)

    # Hosts

    async def open(self) -> None:
        files = {farm.lane.name: files for farm in self._farms if (files := farm.settings.tls_files)}
        await asyncio.to_thread(check_files, files)
        await self._pool.open()
        if (keep := self._settings.docker_keep_seconds) is not None:
            self._retention = asyncio.create_task(self._prune_for_ever(keep))

    async def close(self) -> None:
        if self._retention is not None:
            self._retention.cancel()
            await asyncio.gather(self._retention, return_exceptions=True)
        await self._pool.close()

    async def availability(self, lane: str) -> Availability:
        return self._pool.availability(self._farm(lane))

    async def rank(self, lane: str, image: str, loads: Mapping[str, int]) -> Sequence[str]:
        farm = self._farm(lane)
        places = list(await self._pool.offered(farm))
        random.shuffle(places)
        pullers = {place: self._pool.puller(place) for place in places}
        return sorted(
            places, key=lambda place: (loads.get(place, 0) / farm.hosts[place].weight, not pullers[place].has(image))
        )

    async def is_offered(self, lane: str, place: str) -> bool:
        return place in await self._pool.offered(self._farm(lane))

    async def health(self) -> JsonObject:
        return {"hosts": self._pool.health()}

    # Runs

    def is_prepared(self, request: RunRequest) -> bool:
        resolved = resolve(self._farms.of_lane(request.lane), request.spec)
        if resolved.pull_policy == "always" or resolved.options.platform:
            return False
        # Asking for the image is what tells of a host that is out of reach before it is asked to start anything.
        heard_lately = self._pool.engine(request.place).seconds_since_answer < _LATELY
        return heard_lately and self._pool.puller(request.place).has(request.spec.image)

    async def prepare(self, request: RunRequest, progress: ProgressCallback) -> None:
        resolved = resolve(self._farms.of_lane(request.lane), request.spec)
        await self._pool.puller(request.place).ensure(
            request.spec.image, resolved.pull_policy, progress, platform=resolved.options.platform or ""
        )

    async def start(self, request: RunRequest) -> RunHandle:
        engine = self._pool.engine(request.place)
        resolved = resolve(self._farms.of_lane(request.lane), request.spec)
        loop = asyncio.get_running_loop()
        asked_at = time.monotonic()

        async def confirmed() -> None:
            await self._context.confirm_start(request)

        def confirm() -> None:
            # From the thread, so that nothing comes between the answer and what follows it.
            asked = asyncio.run_coroutine_threadsafe(confirmed(), loop)
            try:
                # Before the engine's own time is over, which is not at fault; it may be asked twice.
                asked.result(self._settings.docker_timeout_seconds / 4)
            except TimeoutError:
                asked.cancel()
                message = f"the storage did not tell in time whether execution {request.execution_id} may be started"
                raise StorageUnavailable(message) from None

        def start(client: Client) -> tuple[str, float | None]:
            return start_run(client, request, resolved, self._settings, confirm, asked_at)

        try:
            container, began = await engine.call("start", start, Kind.START)
        except ImageNotFound:
            # Removed from the host since it was prepared: once more.
            await self._pool.puller(request.place).restore(
                request.spec.image, resolved.pull_policy, platform=resolved.options.platform or ""
            )
            container, began = await engine.call("start", start, Kind.START)
        self._own.add(container)
        self._just_started.add(container)
        handle = replace(self._handle(engine, container, containers.name_of(request.execution_id)), started_at=began)
        if resolved.options.stopGrace is not None:
            return replace(handle, data={**handle.data, "stopGrace": resolved.options.stopGrace})
        return handle

    async def wait(self, handle: RunHandle) -> RunOutcome:
        seen_running = asyncio.Event()
        try:
            return await self._wait(handle, seen_running)
        except EngineUnavailable as error:
            error.had_answered = seen_running.is_set()
            raise

    async def _wait(self, handle: RunHandle, seen_running: asyncio.Event) -> RunOutcome:
        engine, container = self._located(handle)
        watcher = self._pool.watcher(engine.address.key)
        drained = False
        async with watcher.woken_for(container) as wake:
            if self._was_just_started(container, engine) and not watcher.has_heard_of_its_end(container):
                # It runs, or ends in a moment. An end that is not heard is found by the watcher's list of what runs.
                seen_running.set()
                await wake.wait()
                if engine.trouble:
                    raise EngineUnavailable(engine.trouble)
            while True:
                wake.clear()
                outcome = watcher.success_of(container)
                if outcome is not None and self._is_in_sight(container, engine):
                    self._stopped.discard(container)
                    return outcome
                state = await self._on_container(handle, "wait", lambda client: containers.state_of(client, container))
                drain = self._pool.drained(engine.address.key)
                if containers.has_ended(state):
                    outcome = containers.outcome(state)
                    if container in self._stopped:
                        self._stopped.discard(container)
                        return outcome
                    in_sight = self._is_in_sight(container, engine)
                    return await true_outcome(engine, outcome, in_sight=in_sight, drain=drain, drained=drained)
                if drain is not None and not drained:
                    log.info("stopping a run because its host is drained", host=engine.address.key)
                    drained = True
                    await self._stop(handle, self._context.stop_grace_seconds)
                    continue
                seen_running.set()
                await wake.wait()
                if engine.trouble:
                    raise EngineUnavailable(engine.trouble)

    def _was_just_started(self, container: str, engine: Engine) -> bool:
        """Whether this worker started it a moment ago, and nothing speaks against its running; True once."""
        if container not in self._just_started:
            return False
        self._just_started.discard(container)
        return not engine.had_trouble and self._pool.drained(engine.address.key) is None

    def _is_in_sight(self, container: str, engine: Engine) -> bool:
        """Whether this worker started it and has had its engine in reach ever since."""
        return container in self._own and not engine.had_trouble

    async def stop(self, handle: RunHandle, grace: float) -> None:
        self._stopped.add(self._located(handle)[1])
        await self._stop(handle, grace)

    async def _stop(self, handle: RunHandle, grace: float) -> None:
        engine, container = self._located(handle)
        own_grace = handle.data.get("stopGrace")
        if isinstance(own_grace, int | float):
            grace = float(own_grace)

        def stop(client: Client) -> None:
            # The SDK adds the grace to its usual time-out; the engine answers when the container is dead.
            client.stop(container, timeout=math.ceil(max(0.0, grace)))

        with self._run_not_found(handle):
            await engine.stop_call("stop", stop, grace)

    async def logs(self, handle: RunHandle, *, after: str | None, follow: bool) -> AsyncIterator[Output]:
        engine, container = self._located(handle)
        watcher = self._pool.watcher(engine.address.key)

        async def runs() -> bool:
            if watcher.has_heard_of_its_end(container):
                return False
            state = await self._on_container(handle, "log", lambda client: containers.state_of(client, container))
            return not containers.has_ended(state)

        async with watcher.woken_for(container) as wake:
            outputs = read_log(engine, container, after=after, follow=follow, wake=wake, runs=runs)
            async with aclosing(outputs):
                async for output in outputs:
                    yield output

    async def finish(self, handle: RunHandle) -> None:
        engine, container = self._located(handle)
        name = str(handle.data["name"]).replace(containers.NAME_PREFIX, containers.DEFUNCT_PREFIX, 1)

        def finish(client: Client) -> None:
            if self._settings.docker_keep_seconds == 0:
                try:
                    remove(client, container)
                    return
                except CannotRemove as error:
                    # Pruning tries again.
                    log.warning("a processed container cannot be removed", host=engine.address.key, error=str(error))
            try:
                client.rename(container, name)
            except NotFound:
                return
            except APIError as error:
                if error.status_code not in (400, 409):
                    raise
                # It bears that name already, or another container does.
                if containers.DEFUNCT_PREFIX not in client.inspect_container(container)["Name"]:
                    client.rename(container, f"{name}-{container[:12]}")

        await engine.call("finish", finish)
        self._forget(container)

    async def discard(self, handle: RunHandle) -> None:
        engine, container = self._located(handle)

        try:
            # Another worker may find it left over at the same time.
            await engine.call("discard", lambda client: remove(client, container))
        except CannotRemove as error:
            raise RunnerError(f"{engine.address.key} cannot remove the container {container[:12]}: {error}") from error
        self._forget(container)

    async def list_owned(self, place: str) -> AsyncIterator[OwnedRun]:
        engine = self._pool.engine(place)
        listed = await engine.call(
            "list", lambda client: list_containers(client, self._deployment_id, containers.NAME_PREFIX)
        )
        for each in listed:
            yield OwnedRun(
                execution_id=each.execution_id,
                fence=each.fence,
                handle=self._handle(engine, each.id, each.name),
                running=each.running,
                created_at=each.created_at,
            )

    async def prune(self, *, older_than: float, dry_run: bool) -> Sequence[PruneReport]:
        slots = asyncio.Semaphore(_PRUNED_AT_ONCE)

        async def prune(host: str) -> PruneReport:
            async with slots:
                return await self._prune(host, older_than=older_than, dry_run=dry_run, seconds=_PRUNE_SECONDS)

        return await asyncio.gather(*(prune(host) for host in self._addresses))

    # Inside

    def _farm(self, lane: str) -> Farm:
        """The farm of one of `lanes`."""
        farm = self._farms.of_lane(lane)
        if farm is None:
            raise ValueError(f"there is no farm for the lane {lane}")
        return farm

    async def _prune_for_ever(self, keep: float) -> None:
        every = turn_seconds(keep)

        async def prune(host: str) -> PruneReport:
            return await self._prune(host, older_than=keep, dry_run=False, seconds=every)

        hosts = list(self._addresses)
        await Retention(self._context.storage, hosts, prune, clock=self._context.clock, every=every).run()

    async def _prune(self, host: str, *, older_than: float, dry_run: bool, seconds: float) -> PruneReport:
        return await prune_engine(
            self._pool.engine(host),
            self._deployment_id,
            older_than=older_than,
            dry_run=dry_run,
            now=self._context.clock(),
            seconds=seconds,
        )

    async def _on_container(self, handle: RunHandle, what: str, work: Callable[[Client], T]) -> T:
        with self._run_not_found(handle):
            return await self._located(handle)[0].call(what, work)

    @contextmanager
    def _run_not_found(self, handle: RunHandle) -> Iterator[None]:
        """Turns the engine's word that it has no such container into RunNotFound."""
        engine, container = self._located(handle)
        try:
            yield
        except NotFound as error:
            raise RunNotFound(f"the Docker engine {engine.address.key} has no container {container[:12]}") from error

    def _forget(self, container: str) -> None:
        self._stopped.discard(container)
        self._own.discard(container)
        self._just_started.discard(container)

    def _handle(self, engine: Engine, container: str, name: str) -> RunHandle:
        data = {"host": engine.address.key, "container": container, "name": name}
        return RunHandle(runner=self.name, version=_HANDLE_VERSION, data=data)

    def _located(self, handle: RunHandle) -> tuple[Engine, str]:
        if handle.version != _HANDLE_VERSION:
            raise RunNotFound(f"its handle is of version {handle.version}, which this fastlane-docker cannot read")
        return self._pool.engine(str(handle.data["host"])), str(handle.data["container"])
