"""The process runner: `fastlane_core.contracts.runner.Runner` for processes on this machine."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

import structlog

from fastlane_core.builtin.process.command import command_of
from fastlane_core.builtin.process.launch import LaunchFailed
from fastlane_core.builtin.process.outcome import outcome_of
from fastlane_core.builtin.process.output import Position, end_of_output, read_output
from fastlane_core.builtin.process.run_folder import Ended, RunFolder, RunGone, RunRecord, Started
from fastlane_core.builtin.process.settings import ProcessSettings
from fastlane_core.builtin.process.state_folder import Busy, StateFolder
from fastlane_core.builtin.process.watch import send_signal, until_gone
from fastlane_core.contracts.runner import Availability, Capabilities, Lane, OwnedRun, ProgressCallback, Runner
from fastlane_core.errors import EngineUnavailable, RunNotFound, SettingsError, StartRejected, StorageUnavailable
from fastlane_core.hookspecs import RunnerContext
from fastlane_core.models import JsonObject, Output, RunHandle, RunOutcome, RunRequest

T = TypeVar("T")
P = ParamSpec("P")

PLACE = "local"
LANE = "process:local"
_HANDLE_VERSION = 1
_THREADS = 8
#: Seconds between looks at growing output: the first, and the longest while nothing comes.
_FIRST_LOOK, _LONGEST_LOOK = 0.005, 0.1
#: Seconds between looks at a run that is just being started: the first, and the longest.
_FIRST_TRY, _LONGEST_TRY = 0.001, 0.1
#: Seconds that a killed run, or one that somebody has in hand, gets to settle.
_SETTLE_TIME = 30.0

_log = structlog.get_logger(__name__)


class ProcessRunner(Runner):
    """Runs commands in sessions of their own on this machine; images are ignored, and there is no isolation.

    All workers of the machine share one folder. Each run is kept by a shim (see `shim`), which outlives the worker.
    """

    name = "process"
    capabilities = Capabilities(detached=True)

    def __init__(self, context: RunnerContext) -> None:
        settings = context.settings.section(ProcessSettings)
        self._settings = settings
        self._context = context
        self._state = StateFolder(
            Path(os.path.abspath(settings.process_folder)),
            max_output_bytes=settings.process_max_output_bytes,
            clock=context.clock,
        )
        self._threads: ThreadPoolExecutor | None = None

    def lanes(self) -> Sequence[Lane]:
        return [Lane(name=LANE, capacity=self._settings.process_max_running)]

    def lane_for(self, task_id: str) -> str | None:
        return LANE

    async def open(self) -> None:
        if remote := await self._remote_bind():
            raise SettingsError(_refusal(remote))
        try:
            await asyncio.to_thread(self._state.open)
        except OSError as error:
            raise SettingsError(
                f"PROCESS_FOLDER = {self._settings.process_folder!r} cannot be used: {error}. Name a folder on a "
                "local disk that the worker's user may write to."
            ) from error
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="process-runner")
        _log.warning(
            "the process runner has no isolation: jobs run with all rights of this user; images are ignored",
            folder=str(self._state.path),
            max_running=self._settings.process_max_running,
        )

    async def close(self) -> None:
        if self._threads is not None:
            threads, self._threads = self._threads, None
            await asyncio.to_thread(threads.shutdown)

    async def availability(self, lane: str) -> Availability:
        return Availability(places={PLACE: self._settings.process_max_running})

    async def prepare(self, request: RunRequest, progress: ProgressCallback) -> None:
        command_of(request, self._home(request))
        # An API may have come since: what it accepts waits, and says why.
        try:
            remote = await self._remote_bind()
        except StorageUnavailable as error:
            raise EngineUnavailable(f"it cannot be known who reaches the API: {error}") from error
        if remote:
            raise EngineUnavailable(_refusal(remote))

    async def start(self, request: RunRequest) -> RunHandle:
        command = command_of(request, self._home(request))
        record = RunRecord(
            execution_id=request.execution_id,
            deployment_id=request.deployment_id,
            fence=request.fence,
            created_at=self._context.clock(),
        )
        try:
            began = await self._in_thread(self._state.start, record, command)
        except LaunchFailed as error:
            raise EngineUnavailable(f"the process of {_name(request.execution_id)} was not started: {error}") from error
        except Busy:
            raise EngineUnavailable(f"{_name(request.execution_id)} has been held by another worker for long") from None
        return replace(_handle(request.execution_id), started_at=began)

    async def wait(self, handle: RunHandle) -> RunOutcome:
        return outcome_of(await self._until_ended(_execution_id(handle)))

    async def stop(self, handle: RunHandle, grace: float) -> None:
        execution_id = _execution_id(handle)
        async with self._ending(execution_id, refuse_start=True) as ending:
            if grace > 0:
                await self._signal(execution_id, signal.SIGTERM)
                await asyncio.wait([ending], timeout=grace)
            if not ending.done():
                await self._signal(execution_id, signal.SIGUSR1)
                await asyncio.wait([ending], timeout=_SETTLE_TIME)
            if not ending.done():
                raise EngineUnavailable(
                    f"{_name(execution_id)} was killed but has not ended after {_SETTLE_TIME:g} s; look at its "
                    f"processes and at {self._run(execution_id).path}/shim.log"
                )
            await ending

    async def logs(self, handle: RunHandle, *, after: str | None, follow: bool) -> AsyncIterator[Output]:
        execution_id = _execution_id(handle)
        position = Position.parse(after)
        folder = self._run(execution_id).path
        if not follow:
            until = await self._in_thread(end_of_output, folder)
            while outputs := await self._in_thread(read_output, folder, position, until):
                for output in outputs:
                    yield output
                position = Position.parse(outputs[-1].position)
            if not await self._in_thread(folder.is_dir):
                raise _not_found(execution_id)
            return
        async with self._ending(execution_id) as ending:
            pause = _FIRST_LOOK
            while True:
                has_ended = ending.done()
                outputs = await self._in_thread(read_output, folder, position, None)
                for output in outputs:
                    yield output
                if outputs:
                    position = Position.parse(outputs[-1].position)
                    pause = _FIRST_LOOK
                elif has_ended:
                    # Raises what went wrong with the waiting, if anything did.
                    await ending
                    return
                await asyncio.wait([ending], timeout=pause)
                pause = min(2 * pause, _LONGEST_LOOK)

    async def finish(self, handle: RunHandle) -> None:
        execution_id = _execution_id(handle)
        deadline = asyncio.get_running_loop().time() + _SETTLE_TIME
        try:
            while not await self._in_thread(self._state.finish, execution_id):
                if asyncio.get_running_loop().time() > deadline:
                    raise EngineUnavailable(f"{_name(execution_id)} has been held by another worker for long")
                await self.stop(handle, 0)
                await asyncio.sleep(_FIRST_TRY)
        except (RunGone, RunNotFound):
            return

    async def list_owned(self, place: str) -> AsyncIterator[OwnedRun]:
        if place != PLACE:
            raise EngineUnavailable(f"the process runner knows no place {place!r}, only {PLACE!r}")
        try:
            found = await asyncio.to_thread(self._state.list, self._context.deployment_id)
        except OSError as error:
            raise EngineUnavailable(f"the process runner could not look into {self._state.path}: {error}") from error
        for record, running in found:
            yield OwnedRun(
                execution_id=record.execution_id,
                fence=record.fence,
                handle=_handle(record.execution_id),
                running=running,
                created_at=record.created_at,
            )

    async def health(self) -> JsonObject:
        return {
            "hosts": [
                {
                    "host": "localhost",
                    "port": None,
                    "available": True,
                    "blacklisted": False,
                    "circuit": "closed",
                    "error": None,
                }
            ]
        }

    @asynccontextmanager
    async def _ending(self, execution_id: str, *, refuse_start: bool = False) -> AsyncIterator[asyncio.Task[Ended]]:
        """The run's end as a task that goes on beside the block, and no longer."""
        task = asyncio.create_task(self._until_ended(execution_id, refuse_start=refuse_start))
        try:
            yield task
        finally:
            task.cancel()
            # Whatever became of it was the block's to look at.
            await asyncio.gather(task, return_exceptions=True)

    async def _until_ended(self, execution_id: str, *, refuse_start: bool = False) -> Ended:
        pause = _FIRST_TRY
        it_runs = False
        while True:
            try:
                state = await self._settle(execution_id, refuse_start)
            except EngineUnavailable as error:
                error.had_answered = it_runs
                raise
            if isinstance(state, Ended):
                return state
            if state is not None:
                it_runs = True
                await until_gone(state.shim, state.shim_ticks)
            # Mostly once: the shim has ended, or is just being started.
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_TRY)

    async def _signal(self, execution_id: str, number: signal.Signals) -> None:
        """Tell the shim, as soon as there is one, unless the run has ended."""
        deadline = asyncio.get_running_loop().time() + _SETTLE_TIME
        while not isinstance(state := await self._settle(execution_id, refuse_start=True), Ended):
            if state is not None:
                await self._in_thread(send_signal, state.shim, state.shim_ticks, number)
                return
            if asyncio.get_running_loop().time() > deadline:
                raise EngineUnavailable(f"{_name(execution_id)} has been held by another worker for long")
            await asyncio.sleep(_FIRST_TRY)

    async def _settle(self, execution_id: str, refuse_start: bool) -> Started | Ended | None:
        try:
            return await self._in_thread(self._state.settle, execution_id, refuse_start=refuse_start)
        except RunGone:
            raise _not_found(execution_id) from None

    async def _in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._threads is None:
            raise EngineUnavailable("the process runner is not open")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, partial(function, *args, **kwargs))
        except OSError as error:
            raise EngineUnavailable(f"the process runner could not work in {self._state.path}: {error}") from error

    def _run(self, execution_id: str) -> RunFolder:
        try:
            return self._state.run(execution_id)
        except RunGone:
            raise _not_found(execution_id) from None

    async def _remote_bind(self) -> str | None:
        """The address of an API of this deployment that others than this machine reach; None if it does not matter."""
        if self._settings.process_allow_remote:
            return None
        own = self._context.api_bind
        binds = [*([] if own is None else [own]), *sorted(await self._context.api_binds())]
        return next((bind or repr(bind) for bind in binds if not _is_loopback(bind)), None)

    def _home(self, request: RunRequest) -> Path:
        try:
            return self._state.home(request.execution_id)
        except RunGone:
            raise StartRejected(f"{request.execution_id!r} cannot be the name of a folder") from None


def _refusal(bind: str) -> str:
    return (
        f"the process runner refuses to work while an API is bound to {bind}: it has no isolation, so whoever reaches "
        "the API could do anything on this machine. Bind to 127.0.0.1, use another runner, or set "
        "PROCESS_ALLOW_REMOTE = True."
    )


def _handle(execution_id: str) -> RunHandle:
    return RunHandle(runner=ProcessRunner.name, version=_HANDLE_VERSION, data={"execution_id": execution_id})


def _execution_id(handle: RunHandle) -> str:
    execution_id = handle.data.get("execution_id")
    if handle.runner != ProcessRunner.name or handle.version != _HANDLE_VERSION or not isinstance(execution_id, str):
        raise RunNotFound(f"{handle} is no handle of this version's process runner")
    return execution_id


def _not_found(execution_id: str) -> RunNotFound:
    return RunNotFound(f"this machine has no run of {_name(execution_id)}: it was finished, or is another machine's")


def _name(execution_id: str) -> str:
    return f"execution {execution_id}"


def _is_loopback(bind: str) -> bool:
    """Whether only this machine reaches an address: `host`, `host:port`, `[v6]:port`, or several by comma."""
    return all(_is_loopback_host(each.strip()) for each in bind.split(","))


def _is_loopback_host(bind: str) -> bool:
    if bind.startswith("unix:"):
        return True
    host = bind.rpartition(":")[0] if bind.startswith("[") or bind.count(":") == 1 else bind
    host = host.strip("[]") if host else bind.strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
