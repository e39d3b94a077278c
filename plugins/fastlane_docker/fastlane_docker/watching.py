"""Hearing of ended containers from the engine's event stream: one connection per engine, however many runs it has.

Events only wake: whoever waits asks the engine for the truth then. When the stream breaks everybody is woken, so nobody
waits for an engine that is gone, and it is opened anew as long as somebody waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator

import requests
from docker.errors import APIError, DockerException

from fastlane_docker.engine import TROUBLE, Engine, lines_of

#: The stream is opened anew when it was quiet for so many seconds, so that a dead connection is noticed.
_QUIET_SECONDS = 30.0
_RETRY_SECONDS = 0.5


class Watcher:
    """Wakes those who wait for a container when something happened to it."""

    def __init__(self, engine: Engine, label: str) -> None:
        """Only events of containers with `label` are heard."""
        self._engine = engine
        self._label = label
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._listening = asyncio.Event()
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

    def close(self) -> None:
        """End the stream."""
        self._closed.set()
        if self._answer is not None:
            with contextlib.suppress(*TROUBLE, ValueError):
                self._answer.close()

    def _wake(self, container: str | None) -> None:
        for wakes in self._waiting.values() if container is None else [self._waiting.get(container, set())]:
            for wake in wakes:
                wake.set()

    # In the thread

    def _listen(self) -> None:
        filters = json.dumps({"type": ["container"], "event": ["die"], "label": [self._label]})
        while not self._closed.is_set():
            try:
                answer = self._engine.client().open_stream("/events", {"filters": filters}, _QUIET_SECONDS)
                self._answer = answer
                # What happened before the stream was open is found by asking.
                self._tell(None)
                for line in lines_of(answer):
                    self._tell(json.loads(line)["Actor"]["ID"])
            except (*TROUBLE, DockerException, APIError, ValueError, KeyError, AttributeError):
                # Whoever is woken meets the same trouble, and tells of it.
                pass
            self._tell(None)
            if not self._closed.is_set():
                time.sleep(_RETRY_SECONDS)

    def _tell(self, container: str | None) -> None:
        with contextlib.suppress(RuntimeError):
            # The loop may be closed already when the process ends.
            self._loop.call_soon_threadsafe(self._wake, container)
