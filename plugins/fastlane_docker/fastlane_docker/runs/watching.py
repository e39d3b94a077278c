"""Hearing of ended containers from the engine's event stream: one connection per engine, however many runs it has.

Events wake: whoever waits asks the engine for the truth then, but for a run that ended well, of which they tell all.
Whenever the stream was opened or broke, and besides at intervals, however busy the stream is, one call lists what runs,
and whoever waits for something else is woken. So an event that is lost costs nothing but time, and no container is ever
asked about only because time has passed. When the list is not to be had, everybody is woken: nobody waits for an engine
that is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Set
from dataclasses import dataclass
from typing import TypeVar

import requests
import structlog
from docker.errors import APIError, DockerException

from fastlane_core.errors import EngineUnavailable
from fastlane_core.models import Reason, RunOutcome
from fastlane_docker.engines.client import hang_up, lines_of
from fastlane_docker.engines.engine import TROUBLE, Engine
from fastlane_docker.engines.loops import kept_going
from fastlane_docker.runs.listing import deployment_label, list_running

log = structlog.get_logger(__name__)

T = TypeVar("T")

#: The stream is opened anew when it was quiet for so many seconds, so that a dead connection is noticed.
_QUIET_SECONDS = 30.0
#: Seconds between two tries to open the stream while there is trouble, at first and at most.
_RETRY_SECONDS, _LONGEST_RETRY_SECONDS = 0.5, 8.0
#: Starts and ends kept in mind, for who asks a moment later.
_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class _Event:
    """What an engine tells of a container."""

    container: str
    action: str
    #: Unix time, by the engine's clock, where it tells that to the nanosecond.
    at: float | None
    exit_code: str | None


class Watcher:
    """Wakes those who wait for a container when something happened to it."""

    def __init__(self, engine: Engine, deployment_id: str, *, reconcile_seconds: float) -> None:
        """Of a deployment's containers on one engine; compares what runs with who waits every `reconcile_seconds`."""
        self._engine = engine
        self._deployment_id = deployment_id
        self._reconcile_seconds = reconcile_seconds
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[str, set[asyncio.Event]] = {}
        #: When containers started, of which that was heard, and how those ended whose end was; latest last.
        self._started: OrderedDict[str, float] = OrderedDict()
        self._ended: OrderedDict[str, RunOutcome | None] = OrderedDict()
        self._closed = threading.Event()
        self._answer: requests.Response | None = None
        #: Set when it is time to compare before the interval is over.
        self._stream_changed = asyncio.Event()
        self._reconciling: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def woken_for(self, container: str) -> AsyncIterator[asyncio.Event]:
        """An event that is set whenever something may have happened to the container; clear it before asking."""
        wake = asyncio.Event()
        self._waiting.setdefault(container, set()).add(wake)
        if self._reconciling is None:
            self._engine.submit_stream(self._listen)
            self._reconciling = asyncio.create_task(
                kept_going(f"list {self._engine.address.key}", self._keep_reconciling)
            )
        try:
            yield wake
        finally:
            waiting = self._waiting[container]
            waiting.discard(wake)
            if not waiting:
                del self._waiting[container]

    def has_heard_of_its_end(self, container: str) -> bool:
        """Whether the container is known to have ended; False says nothing."""
        return container in self._ended

    def success_of(self, container: str) -> RunOutcome | None:
        """The outcome of a container that was heard to end with exit code 0; None for all others.

        Of what failed, the engine's events do not tell why.
        """
        return self._ended.get(container)

    def wake_all(self) -> None:
        """Wake everybody: something may have happened to the engine."""
        self._wake_but(frozenset())

    async def close(self) -> None:
        """End the stream."""
        self._closed.set()
        if self._answer is not None:
            hang_up(self._answer)
        if self._reconciling is not None:
            self._reconciling.cancel()
            await asyncio.gather(self._reconciling, return_exceptions=True)

    async def _keep_reconciling(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._reconcile_seconds):
                    await self._stream_changed.wait()
            self._stream_changed.clear()
            if not self._waiting:
                continue
            try:
                self._wake_but(
                    await self._engine.call("list", lambda client: list_running(client, self._deployment_id))
                )
            except Exception as error:
                # Whoever is woken meets the same trouble, and tells of it.
                self.wake_all()
                if not isinstance(error, EngineUnavailable | APIError):
                    raise

    def _heed(self, event: _Event) -> None:
        container, at = event.container, event.at
        if event.action == "start":
            self._ended.pop(container, None)
            # Labels stand among the engine's own attributes, and before them: one may pass for an exit code.
            if at is not None and event.exit_code is None:
                _remember(self._started, container, at)
            return
        began = self._started.pop(container, None)
        outcome = None
        if began is not None and at is not None and event.exit_code == "0":
            outcome = RunOutcome(exit_code=0, reason=Reason.SUCCEEDED, started_at=min(began, at), finished_at=at)
        _remember(self._ended, container, outcome)
        self._wake(container)

    def _break_off(self) -> None:
        # What started before may have ended in a way that this stream does not tell, with its engine for one.
        self._started.clear()
        self._stream_changed.set()

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
            pause = _RETRY_SECONDS
            while not self._closed.is_set():
                begun = time.monotonic()
                try:
                    self._hear()
                except (*TROUBLE, DockerException, ValueError, KeyError, TypeError) as error:
                    # Also when it was quiet. Trouble that matters is told by the list, or by pings.
                    log.debug("an event stream ended", host=self._engine.address.key, error=str(error))
                except RuntimeError:
                    raise
                except Exception:
                    log.exception("hearing of events crashed and is begun again", host=self._engine.address.key)
                if self._answer is not None:
                    self._answer = None
                    self._loop.call_soon_threadsafe(self._break_off)
                if time.monotonic() - begun > _LONGEST_RETRY_SECONDS:
                    pause = _RETRY_SECONDS
                self._closed.wait(pause)
                pause = min(2 * pause, _LONGEST_RETRY_SECONDS)

    def _hear(self) -> None:
        """Hear until the stream breaks, or was quiet for long."""
        filters = {"type": ["container"], "event": ["start", "die"], "label": [deployment_label(self._deployment_id)]}
        client = self._engine.client()
        with client.streaming("/events", {"filters": json.dumps(filters)}, quiet_seconds=_QUIET_SECONDS) as answer:
            self._answer = answer
            if self._closed.is_set():
                return
            # Something may have ended before.
            self._loop.call_soon_threadsafe(self._stream_changed.set)
            for line in lines_of(answer):
                self._loop.call_soon_threadsafe(self._heed, _parsed(line))


def _parsed(line: bytes) -> _Event:
    event = json.loads(line)
    actor, at = event["Actor"], event.get("timeNano")
    return _Event(
        container=str(actor["ID"]),
        action=str(event["Action"]),
        at=None if at is None else at / 1e9,
        exit_code=(actor.get("Attributes") or {}).get("exitCode"),
    )


def _remember(latest: OrderedDict[str, T], container: str, what: T) -> None:
    latest[container] = what
    if len(latest) > _REMEMBERED:
        latest.popitem(last=False)
