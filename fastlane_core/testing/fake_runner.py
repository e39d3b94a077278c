"""A runner without processes or containers: for tests of what stands above a runner, and for benchmarks of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from fastlane_core.contracts.runner import (
    Availability,
    Capabilities,
    Lane,
    OwnedRun,
    ProgressCallback,
    PrunedRun,
    PruneReport,
    Runner,
)
from fastlane_core.errors import RunnerError, RunNotFound
from fastlane_core.hookspecs import RunnerContext, RunnerPlugin, hookimpl
from fastlane_core.models import JsonObject, Output, RunHandle, RunOutcome, RunRequest, Stream
from fastlane_core.testing.fake_engine import FakeEngine

_PIECE = 64 * 1024
_HANDLE_VERSION = 1


class FakeRunner(Runner):
    """One worker's runner over a `FakeEngine`; make another over the same engine to have another worker."""

    def __init__(
        self,
        engine: FakeEngine,
        *,
        deployment_id: str,
        name: str = "fake",
        lanes: Mapping[str, int] | None = None,
        route: Callable[[str], str | None] | None = None,
        detached: bool = True,
    ) -> None:
        """`lanes` gives capacities by name; by default there is one. `route` gives the lane of a task: else the first.

        Runs of a runner that is not `detached` vanish when it is closed.
        """
        self.name = name
        self.capabilities = Capabilities(detached=detached, prune=True)
        self.engine = engine
        self._deployment_id = deployment_id
        self._lanes = dict(lanes if lanes is not None else {f"{name}:default": sum(engine.places.values())})
        self._route = route or (lambda task_id: next(iter(self._lanes), None))
        self._started: set[str] = set()

    def lanes(self) -> Sequence[Lane]:
        return [Lane(name=name, capacity=capacity) for name, capacity in self._lanes.items()]

    def lane_for(self, task_id: str) -> str | None:
        return self._route(task_id)

    async def close(self) -> None:
        if not self.capabilities.detached:
            for execution_id in self._started.intersection(self.engine.running):
                self.engine.lose(execution_id)

    async def availability(self, lane: str) -> Availability:
        if self.engine.is_down:
            return Availability(places={}, reason="the fake engine is down")
        places = self.engine.places
        offered = {place: room for place, room in places.items() if place not in self.engine.cordoned}
        return Availability(places=offered, reachable=list(places))

    async def prepare(self, request: RunRequest, progress: ProgressCallback) -> None:
        await self.engine.reach()
        await self.engine.pull(request.spec.image, progress)

    async def start(self, request: RunRequest) -> RunHandle:
        await self.engine.reach()
        self._started.add(request.execution_id)
        found = self.engine.runs.get(request.execution_id)
        self.engine.start(request)
        handle = self._handle(request.execution_id)
        return handle if found is None else replace(handle, started_at=found.created_at)

    async def wait(self, handle: RunHandle) -> RunOutcome:
        execution_id = self._execution_id(handle)
        await self.engine.reach()
        while True:
            run = self.engine.run(execution_id)
            if run.outcome is not None:
                return run.outcome
            await run.changed.wait()
            self.engine.check(had_answered=True)

    async def stop(self, handle: RunHandle, grace: float) -> None:
        execution_id = self._execution_id(handle)
        await self.engine.reach()
        await self.engine.stop(self.engine.run(execution_id), grace)

    async def logs(self, handle: RunHandle, *, after: str | None, follow: bool) -> AsyncIterator[Output]:
        execution_id = self._execution_id(handle)
        offsets = _parse(after)
        await self.engine.reach()
        while True:
            run = self.engine.run(execution_id)
            changed, has_ended = run.changed, run.outcome is not None
            for stream in Stream:
                end = len(run.output[stream])
                while offsets[stream] < end:
                    data = bytes(run.output[stream][offsets[stream] : min(end, offsets[stream] + _PIECE)])
                    offsets[stream] += len(data)
                    yield Output(stream=stream, data=data, position=_position(offsets))
            if has_ended or not follow:
                return
            await changed.wait()
            self.engine.check()

    async def finish(self, handle: RunHandle) -> None:
        await self.engine.reach()
        run = self.engine.runs.get(self._execution_id(handle))
        if run is not None and run.finished_at is None:
            await self.engine.stop(run, 0)
            run.finished_at = self.engine.clock()

    async def list_owned(self, place: str) -> AsyncIterator[OwnedRun]:
        await self.engine.reach()
        for execution_id, run in list(self.engine.runs.items()):
            request = run.request
            if request.place == place and request.deployment_id == self._deployment_id and run.finished_at is None:
                yield OwnedRun(
                    execution_id=execution_id,
                    fence=request.fence,
                    handle=self._handle(execution_id),
                    running=run.outcome is None,
                    created_at=run.created_at,
                )

    async def prune(self, *, older_than: float, dry_run: bool) -> Sequence[PruneReport]:
        await self.engine.reach()
        before = self.engine.clock() - older_than
        reports = []
        for place in self.engine.places:
            old = [
                PrunedRun(
                    name=execution_id,
                    execution_id=execution_id,
                    image=run.request.spec.image,
                    created_at=run.created_at,
                )
                for execution_id, run in self.engine.runs.items()
                if run.request.place == place
                and run.request.deployment_id == self._deployment_id
                and run.finished_at is not None
                and run.finished_at <= before
            ]
            if not dry_run:
                self.engine.remove([each.execution_id for each in old])
            reports.append(PruneReport(place=place, runs=old))
        return reports

    async def health(self) -> JsonObject:
        error = "the fake engine is down" if self.engine.is_down else None
        return {
            "hosts": [
                {
                    "host": place,
                    "port": None,
                    "available": error is None,
                    "blacklisted": False,
                    "circuit": "closed",
                    "error": error,
                }
                for place in self.engine.places
            ]
        }

    def _handle(self, execution_id: str) -> RunHandle:
        return RunHandle(runner=self.name, version=_HANDLE_VERSION, data={"execution_id": execution_id})

    def _execution_id(self, handle: RunHandle) -> str:
        execution_id = handle.data.get("execution_id")
        if handle.runner != self.name or handle.version != _HANDLE_VERSION or not isinstance(execution_id, str):
            raise RunNotFound(f"{handle} is no handle of the runner {self.name}")
        return execution_id


class FakeRunnerPlugin:
    """A plugin to register with an application under test: its workers all use one engine."""

    def __init__(self, engine: FakeEngine, *, name: str = "fake", lanes: Mapping[str, int] | None = None) -> None:
        self._engine = engine
        self._name = name
        self._lanes = lanes

    @hookimpl
    def fastlane_runners(self) -> Iterable[RunnerPlugin]:
        """The runner."""
        yield RunnerPlugin(name=self._name, create=self._create)

    def _create(self, context: RunnerContext) -> Runner:
        return FakeRunner(self._engine, deployment_id=context.deployment_id, name=self._name, lanes=self._lanes)


def _position(offsets: Mapping[Stream, int]) -> str:
    return f"{offsets[Stream.STDOUT]},{offsets[Stream.STDERR]}"


def _parse(position: str | None) -> dict[Stream, int]:
    stdout, comma, stderr = (position or "0,0").partition(",")
    if not (comma and stdout.isdecimal() and stderr.isdecimal()):
        raise RunnerError(f"{position!r} is no position in the output of a fake run")
    return {Stream.STDOUT: int(stdout), Stream.STDERR: int(stderr)}
