"""Hearing of ended containers from the engine's event stream: one connection per engine, however many runs it has.

Events only wake: whoever waits asks the engine for the truth then. Whenever the stream is opened, one call lists
what runs, and whoever waits for something else is woken; when the stream breaks, everybody is. An event that is lost
costs nothing but time, and nobody waits for an engine that is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Set

import requests
from docker.errors import DockerException

from fastlane_docker.client import hang_up, lines_of
from fastlane_docker.engine import TROUBLE, Engine

#: The stream is opened anew when it was quiet for so many seconds, so that a dead connection is noticed.
_QUIET_SECONDS = 30.0
#: Seconds between two tries to open the stream while there is trouble.
_RETRY_SECONDS = 0.5
#: Ends kept in mind, for who asks a moment later.
_REMEMBERED = 4096


class Watcher:
    """Wakes those who wait for a container when something happened to it."""

    def __init__(self, engine: Engine, label: str) -> None:
        """Only events of containers with `label` are heard."""
        self._engine = engine
        self._label = label
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[str, set[asyncio.Event]] = {}
        #: Containers whose end was heard, latest last.
        self._died: OrderedDict[str, None] = OrderedDict()
        self._closed = threading.Event()
        self._answer: requests.Response | None = None
        self._started = False

    @contextlib.asynccontextmanager
    async def woken_for(self, container: str) -> AsyncIterator[asyncio.Event]:
        """An event that is set whenever something may have happened to the container; clear it before asking."""
        wake = asyncio.Event()
        self._waiting.setdefault(container, set()).add(wake)
        if not self._started:
            self._started = True
            self._engine.submit_stream(self._listen)
        try:
            yield wake
        finally:
            waiting = self._waiting[container]
            waiting.discard(wake)
            if not waiting:
                del self._waiting[container]

    def has_heard_of_its_end(self, container: str) -> bool:
        """Whether the container is known to have ended; False says nothing."""
        return container in self._died

    def wake_all(self) -> None:
        """Wake everybody: something may have happened to the engine."""
        self._wake_but(frozenset())

    def close(self) -> None:
        """End the stream."""
        self._closed.set()
        if self._answer is not None:
            hang_up(self._answer)

    def _end(self, container: str) -> None:
        self._died[container] = None
        if len(self._died) > _REMEMBERED:
            self._died.popitem(last=False)
        self._wake(container)

    def _wake(self, container: str) -> None:
        for wake in self._waiting.get(container, ()):
            wake.set()

    def _wake_but(self, containers: Set[str]) -> None:
        for container in self._waiting.keys() - containers:
            self._wake(container)

    # In the thread

    def _listen(self) -> None:
        # The loop may be closed already when the process ends.
        with contextlib.suppress(RuntimeError):
            while not self._closed.is_set():
                try:
                    self._hear()
                except requests.exceptions.ReadTimeout:
                    continue
                except (*TROUBLE, DockerException, ValueError, KeyError) as error:
                    if _is_quiet(error):
                        continue
                    # Whoever is woken meets the same trouble, and tells of it.
                    self._loop.call_soon_threadsafe(self.wake_all)
                self._closed.wait(_RETRY_SECONDS)

    def _hear(self) -> None:
        client = self._engine.client()
        filters = {"type": ["container"], "event": ["die"], "label": [self._label]}
        with client.streaming("/events", {"filters": json.dumps(filters)}, quiet_seconds=_QUIET_SECONDS) as answer:
            self._answer = answer
            if self._closed.is_set():
                return
            # What happened before the stream was open.
            running = {str(each["Id"]) for each in client.containers(filters={"label": [self._label]})}
            self._loop.call_soon_threadsafe(self._wake_but, running)
            for line in lines_of(answer):
                self._loop.call_soon_threadsafe(self._end, str(json.loads(line)["Actor"]["ID"]))


def _is_quiet(error: BaseException) -> bool:
    """Whether the stream ended only because nothing came for a while."""
    return "timed out" in str(error).lower()
