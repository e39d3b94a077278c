"""Following a container's log from a thread that reads the engine to a coroutine that stores it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator

import requests
from docker.errors import APIError, DockerException, NotFound

from fastlane_core.errors import EngineUnavailable, FastlaneError, RunNotFound
from fastlane_core.models import Output
from fastlane_docker.engine import TROUBLE, Engine
from fastlane_docker.frames import FrameReader, parse_position

#: Outputs read ahead of the consumer, in bytes; then the thread waits, and the engine with it.
_READ_AHEAD = 512 * 1024
#: Outputs handed over at a time are joined by the consumer; one read of the engine is at most this long.
_READ = 64 * 1024
#: A quiet log is asked for anew after so many seconds, so that a dead connection is noticed.
_QUIET_SECONDS = 60.0


async def read_log(engine: Engine, container: str, *, after: str | None, follow: bool) -> AsyncIterator[Output]:
    """Outputs of the container beyond `after`; with `follow` until it has ended.

    Raises EngineUnavailable, RunNotFound.
    """
    position = after
    while True:
        quiet = False
        reading = _Reading(engine, container, position, follow=follow)
        try:
            async for output in reading:
                position = output.position
                yield output
        except _Quiet:
            quiet = True
        finally:
            reading.close()
        if not follow:
            return
        if not quiet and not await _runs(engine, container):
            # The engine may end a follow before the last frames of an ended container: read what is beyond.
            follow = False


async def _runs(engine: Engine, container: str) -> bool:
    try:
        state = await engine.call("inspect", lambda client: client.inspect_container(container)["State"])
    except NotFound as error:
        raise RunNotFound(f"the Docker engine {engine.address.key} has no container {container[:12]}") from error
    return bool(state["Running"])


class _Quiet(Exception):
    """Nothing came for a while; no error."""


class _Reading:
    """One request for the log, read by a thread, taken over by one consumer."""

    def __init__(self, engine: Engine, container: str, after: str | None, *, follow: bool) -> None:
        self._engine = engine
        self._container = container
        self._after = after
        self._follow = follow
        self._loop = asyncio.get_running_loop()
        self._ready = asyncio.Event()
        self._room = threading.Condition()
        self._outputs: list[Output] = []
        self._size = 0
        self._end: Exception | None = None
        self._ended = False
        self._closed = False
        self._answer: requests.Response | None = None

    async def __aiter__(self) -> AsyncIterator[Output]:
        self._engine.submit_stream(self._read)
        while True:
            await self._ready.wait()
            with self._room:
                self._ready.clear()
                outputs, self._outputs, self._size = self._outputs, [], 0
                ended = self._ended
                self._room.notify()
            for output in outputs:
                yield output
            if ended:
                if self._end is not None:
                    raise self._end
                return

    def close(self) -> None:
        """End the thread, wherever it is."""
        with self._room:
            self._closed = True
            self._room.notify()
        answer = self._answer
        if answer is not None:
            _hang_up(answer)

    # In the thread

    def _read(self) -> None:
        error: Exception | None = None
        try:
            self._copy()
        except NotFound as failure:
            error = RunNotFound(f"the Docker engine {self._engine.address.key} has no such container: {failure}")
        except (*TROUBLE, DockerException, APIError) as failure:
            quiet = self._follow and "timed out" in str(failure).lower()
            error = _Quiet() if quiet else self._engine.unavailable("log", failure)
        except FastlaneError as failure:
            error = failure
        except Exception as failure:
            # A frame that cannot be read, or a connection closed under the reader by `close`.
            error = EngineUnavailable(f"the log of {self._container[:12]} cannot be read: {failure!r}")
        with self._room:
            self._ended, self._end = True, error
        self._wake()

    def _copy(self) -> None:
        when, _ = parse_position(self._after)
        params = {
            "stdout": 1,
            "stderr": 1,
            "timestamps": 1,
            "follow": int(self._follow),
            **({"since": when} if when else {}),
        }
        client = self._engine.client()
        answer = client.open_stream(f"/containers/{self._container}/logs", params, _QUIET_SECONDS)
        self._answer = answer
        reader = FrameReader(self._after)
        try:
            for data in answer.raw.stream(_READ, decode_content=True):
                outputs = list(reader.feed(data))
                if outputs and not self._hand_over(outputs):
                    return
        finally:
            answer.close()

    def _hand_over(self, outputs: list[Output]) -> bool:
        """Pass outputs on once there is room; False if nobody wants them any more."""
        with self._room:
            self._room.wait_for(lambda: self._closed or self._size < _READ_AHEAD)
            if self._closed:
                return False
            first = not self._outputs
            self._outputs += outputs
            self._size += sum(len(output.data) for output in outputs)
        if first:
            self._wake()
        return True

    def _wake(self) -> None:
        with contextlib.suppress(RuntimeError):
            # The loop may be closed already when the process ends.
            self._loop.call_soon_threadsafe(self._ready.set)


def _hang_up(answer: requests.Response) -> None:
    """Close the connection so that a thread that reads from it returns."""
    import socket

    connection = getattr(answer.raw, "_connection", None) or getattr(answer.raw, "connection", None)
    sock = getattr(connection, "sock", None)
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(*TROUBLE, ValueError):
        answer.close()
