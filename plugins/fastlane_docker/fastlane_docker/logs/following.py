"""Following a container's log: a thread reads the engine, a coroutine hands it on, with little between them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from enum import Enum

import requests
from docker.errors import DockerException, NotFound

from fastlane_core.errors import EngineUnavailable, RunNotFound
from fastlane_core.models import Output
from fastlane_docker.engines.client import Client, chunks_of, hang_up
from fastlane_docker.engines.engine import TROUBLE, Engine
from fastlane_docker.logs.frames import FrameReader, joined
from fastlane_docker.logs.positions import Positions

#: Outputs read ahead of the consumer, in bytes; then the thread waits, and the engine with it.
_READ_AHEAD = 512 * 1024
#: Bytes that an output takes beside its data: as much as hundreds of lines, where the streams take turns.
_OUTPUT_BYTES = 256
#: A log that gave less than so many bytes, and soon after the last time, is left alone for so many seconds.
_GATHERED = 32 * 1024
_GATHER_SECONDS = 0.01
#: Reading what is there must not pause for so many seconds. A follow may be silent for ever: the connection's keepalive
#: notices that the other end is gone, and who follows is woken when the engine is out of reach or the run has ended.
_READ_QUIET_SECONDS = 60.0
#: A follow that goes on after the container's end without giving anything is ended after so many seconds.
_LINGER_SECONDS = 2.0
#: Pause before a follow that the engine ended is begun again, for a container that goes on.
_AGAIN_SECONDS = 0.2


class _Ended(Enum):
    """Why a request for the log gives no more."""

    ALL_READ = "all read"
    #: The container ended some time ago, but not the follow.
    LINGERS = "lingers"


async def read_log(
    engine: Engine,
    container: str,
    *,
    after: str | None,
    follow: bool,
    wake: asyncio.Event,
    runs: Callable[[], Awaitable[bool]],
) -> AsyncGenerator[Output, None]:
    """Outputs of the container beyond `after`; with `follow` until it has ended.

    `wake` is set when it may have ended, and `runs` tells whether it has not.
    Raises EngineUnavailable, RunNotFound, and what `runs` raises.
    """
    position = after
    while True:
        reading = _Reading(engine, container, position, follow=follow)
        try:
            async with contextlib.aclosing(reading.outputs(wake, runs)) as outputs:
                async for output in outputs:
                    position = output.position
                    yield output
        finally:
            reading.close()
        if not follow:
            return
        if reading.ended is _Ended.ALL_READ and await runs():
            await asyncio.sleep(_AGAIN_SECONDS)
            continue
        # The engine may end a follow before the last frames of an ended container: read what is beyond.
        if not await goes_on(engine, container, reading.last_frame):
            return
        follow = False


async def goes_on(engine: Engine, container: str, last: bytes) -> bool:
    """Whether the log of an ended container may have more behind the frame `last`; True where that cannot be told.

    Asking for the last frame costs the engine nothing; finding out where to go on, a walk through the whole log.
    """
    if last and not last.endswith(b"\n"):
        # Frames of one line all bear its time, so two of them may be the same.
        return True

    def read_last(client: Client) -> bytes:
        parameters = {"stdout": 1, "stderr": 1, "timestamps": 1, "tail": 1}
        path = f"/containers/{container}/logs"
        with client.streaming(path, parameters, quiet_seconds=_READ_QUIET_SECONDS) as answer:
            return b"".join(chunks_of(answer))

    try:
        return await engine.call("log", read_last) != last
    except NotFound as error:
        raise RunNotFound(
            f"the Docker engine {engine.address.key} has no container {container[:12]}: {error}"
        ) from error


class _Reading:
    """One request for the log, read by a thread, taken over by one consumer."""

    def __init__(self, engine: Engine, container: str, after: str | None, *, follow: bool) -> None:
        self._engine = engine
        self._container = container
        self._follow = follow
        self._positions = Positions(after)
        self._loop = asyncio.get_running_loop()
        self._ready = asyncio.Event()
        self._room = threading.Condition()
        self._outputs: list[Output] = []
        self._size = 0
        self._error: Exception | None = None
        self._closed = False
        self._answer: requests.Response | None = None
        #: Once `outputs` has ended without an error.
        self.ended: _Ended | None = None
        self._thread_ended: _Ended | None = None
        self._frames = FrameReader(self._positions)

    @property
    def last_frame(self) -> bytes:
        """The last frame that was read; empty before the first. Once `outputs` has ended."""
        return self._frames.last

    async def outputs(self, wake: asyncio.Event, runs: Callable[[], Awaitable[bool]]) -> AsyncGenerator[Output, None]:
        """Everything, in order."""
        self._engine.submit_stream(self._read)
        while True:
            lingers = not await self._wait(wake, runs)
            with self._room:
                self._ready.clear()
                outputs, self._outputs, self._size = self._outputs, [], 0
                error, thread_ended = self._error, self._thread_ended
                self._room.notify()
            for output in joined(outputs):
                yield output
            if error is not None:
                raise error
            if lingers and not outputs and thread_ended is None:
                thread_ended = _Ended.LINGERS
            if thread_ended is not None:
                self.ended = thread_ended
                return

    def close(self) -> None:
        """End the thread, wherever it is."""
        with self._room:
            self._closed = True
            self._room.notify()
        if self._answer is not None:
            hang_up(self._answer)

    async def _wait(self, wake: asyncio.Event, runs: Callable[[], Awaitable[bool]]) -> bool:
        """Wait until there is something to take over; False if nothing came although the container has ended."""
        while not self._ready.is_set():
            if not self._follow:
                await self._ready.wait()
                break
            await _first(self._ready, wake)
            if self._ready.is_set():
                break
            wake.clear()
            if not await runs():
                # The event stays set, so that the next round does not wait for it.
                wake.set()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LINGER_SECONDS):
                        await self._ready.wait()
                return self._ready.is_set()
        return True

    # In the thread

    def _read(self) -> None:
        error: Exception | None = None
        try:
            self._copy()
        except NotFound as failure:
            error = _not_found(self._engine, self._container, failure)
        except EngineUnavailable as failure:
            error = failure
        except (*TROUBLE, DockerException) as failure:
            error = self._engine.unavailable("log", failure)
        except Exception as failure:
            # A frame that cannot be read: nothing that this thread could do more.
            error = EngineUnavailable(f"the log of {self._container[:12]} cannot be read: {failure!r}")
        with self._room:
            self._thread_ended, self._error = _Ended.ALL_READ, error
        self._wake()

    def _copy(self) -> None:
        parameters = {
            "stdout": 1,
            "stderr": 1,
            "timestamps": 1,
            "follow": int(self._follow),
            "since": self._positions.since,
        }
        quiet_seconds = None if self._follow else _READ_QUIET_SECONDS
        path = f"/containers/{self._container}/logs"
        with self._engine.client().streaming(path, parameters, quiet_seconds=quiet_seconds) as answer:
            with self._room:
                self._answer = answer
                if self._closed:
                    return
            read_at = float("-inf")
            for data in chunks_of(answer):
                if not self._hand_over(self._frames.feed(data)):
                    return
                if len(data) < _GATHERED and time.monotonic() - read_at < _GATHER_SECONDS:
                    # Lines come one by one as fast as the engine can: take many at a time.
                    time.sleep(_GATHER_SECONDS)
                read_at = time.monotonic()

    def _hand_over(self, outputs: list[Output]) -> bool:
        """Pass outputs on once there is room; False if nobody wants them any more."""
        with self._room:
            self._room.wait_for(lambda: self._closed or self._size < _READ_AHEAD)
            if self._closed:
                return False
            if not outputs:
                return True
            first = not self._outputs
            self._outputs += outputs
            self._size += sum(len(output.data) + _OUTPUT_BYTES for output in outputs)
        if first:
            self._wake()
        return True

    def _wake(self) -> None:
        with contextlib.suppress(RuntimeError):
            # The loop may be closed already when the process ends.
            self._loop.call_soon_threadsafe(self._ready.set)


async def _first(*events: asyncio.Event) -> None:
    """Return when one of the events is set."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


def _not_found(engine: Engine, container: str, error: NotFound) -> RunNotFound:
    return RunNotFound(f"the Docker engine {engine.address.key} has no container {container[:12]}: {error}")
