"""One Docker engine: its threads, its client, and its failures as Fastlane's errors.

The SDK blocks, so every call runs in a thread. Each engine has threads of its own, so that a slow one delays no other;
and short calls, stops, pulls, streams and pings have theirs, so that what lasts keeps nothing short waiting.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from typing import TypeVar

import requests
import urllib3
from docker.errors import APIError, DockerException

from fastlane_core.daemon_threads import DaemonThreads
from fastlane_core.errors import EngineUnavailable
from fastlane_docker.engines.addresses import Address
from fastlane_docker.engines.certificates import TlsFileError
from fastlane_docker.engines.client import Client, NoEngine
from fastlane_docker.engines.tls_trouble import TlsTrouble

T = TypeVar("T")

#: Threads at most: for short calls, for stops (each lasts as long as its grace), for pulls, and for streams.
_CALLS = 16
_STOPS = 64
PULLS = 16
_STREAMS = 1024
#: Characters of an engine's explanation that are passed on.
_LONGEST_WORDS = 1000
#: Connections kept open between calls.
_CONNECTIONS = _CALLS + _STOPS
#: An engine that does not answer a ping within so many seconds is out of reach.
_PING_SECONDS = 5.0
#: What the SDK raises when the engine, not the request, is at fault.
TROUBLE = (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError)


class Kind(StrEnum):
    """What a call tells of an engine: that it does one kind of thing says nothing of the others."""

    PING = "ping"
    #: Those that a new run needs.
    IMAGE = "image"
    PULL = "pull"
    START = "start"
    OTHER = "other"


class Engine:
    """An engine that calls go to."""

    def __init__(self, address: Address, timeout: float, heard: Callable[[Kind, str], None]) -> None:
        """`timeout`, in seconds, bounds each short call, its wait for a thread included.

        `heard` is told of each call, in the event loop: its kind, and why the engine could not be reached, "" if it
        answered.
        """
        self.address = address
        self._heard = heard
        self._timeout = timeout
        self._lock = threading.Lock()
        self._client: Client | None = None
        self._closed = False
        self._calls = DaemonThreads(_CALLS, f"docker {address.key}")
        self._stops = DaemonThreads(_STOPS, f"docker stop {address.key}")
        self._pulls = DaemonThreads(PULLS, f"docker pull {address.key}")
        self._streams = DaemonThreads(_STREAMS, f"docker stream {address.key}")
        self._pings = DaemonThreads(1, f"docker ping {address.key}")
        #: Whether it was ever out of reach, as far as is known here.
        self.had_trouble = False
        self._answered_at = float("-inf")
        #: Why it could not be reached when it was last looked at; "" if it answered, None before the first look.
        self.trouble: str | None = None

    async def call(self, what: str, work: Callable[[Client], T], kind: Kind = Kind.OTHER) -> T:
        """Do `work`, a short call, in a thread.

        Raises what it raises, but EngineUnavailable for trouble to reach the engine or to hear from it in time. One
        that found no free thread in that time says nothing of the engine.
        """
        return await self._in_time(self._calls, kind, what, work, self._timeout)

    async def stop_call(self, what: str, work: Callable[[Client], T], seconds: float) -> T:
        """`call` for a stop that may take `seconds` more than a short call, from when it has a thread.

        Many that are asked for at once take their turns: each may last as long as its grace.
        """
        return await self._in_time(self._stops, Kind.OTHER, what, work, self._timeout + seconds, waits_for_thread=True)

    async def pull_call(self, what: str, work: Callable[[Client], T]) -> T:
        """`call` for a pull or another work of minutes, which bounds its own time."""
        return await self._in_time(self._pulls, Kind.PULL, what, work, None)

    def submit_stream(self, work: Callable[[], None]) -> asyncio.Future[None]:
        """Run `work`, which reads a stream and raises nothing, in a thread."""
        return self._streams.run(work)

    async def ping(self) -> None:
        """See whether it answers, and remember."""
        try:
            await self._in_time(
                self._pings, Kind.PING, "ping", lambda client: client.ping_within(_PING_SECONDS), 2 * _PING_SECONDS
            )
        except EngineUnavailable as error:
            self.trouble = str(error)

    def client(self) -> Client:
        """The client, made at first use; blocks. Raises TROUBLE or DockerException."""
        with self._lock:
            if self._client is not None and self._client.is_outdated():
                self._forget_client()
            if self._client is None and not self._closed:
                self._client = Client.connected(
                    self.address.url, self._timeout, connections=_CONNECTIONS, tls=self.address.tls
                )
            client = self._client
            if client is None or self._closed:
                # Also while it connected: nobody else would let go of its connections.
                self._forget_client()
                raise ConnectionError("this worker has closed its connections")
            return client

    def close(self) -> None:
        """Let go of threads and connections; calls under way end by themselves, and nobody waits for them."""
        self._closed = True
        for threads in (self._calls, self._stops, self._pulls, self._streams, self._pings):
            threads.close()
        self._forget_client()

    def unavailable(self, what: str, error: BaseException) -> EngineUnavailable:
        """The error for a failed call."""
        return EngineUnavailable(f"the Docker engine {self.address.key} cannot be reached ({what}): {_short(error)}")

    def _forget_client(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()

    async def _in_time(
        self,
        threads: DaemonThreads,
        kind: Kind,
        what: str,
        work: Callable[[Client], T],
        seconds: float | None,
        *,
        waits_for_thread: bool = False,
    ) -> T:
        loop = asyncio.get_running_loop()
        limit = asyncio.timeout(None if waits_for_thread else seconds)
        has_begun = False

        def start_clock() -> None:
            # It is over already where the caller was cancelled meanwhile.
            with suppress(RuntimeError):
                limit.reschedule(loop.time() + (seconds or 0.0))

        def run() -> T:
            nonlocal has_begun
            has_begun = True
            if waits_for_thread:
                loop.call_soon_threadsafe(start_clock)
            try:
                return work(self.client())
            except APIError as error:
                if is_engines_fault(error):
                    raise self.unavailable(what, error) from error
                raise
            except (*TROUBLE, DockerException) as error:
                raise self.unavailable(what, error) from error

        try:
            future = threads.run(run)
        except RuntimeError as error:
            raise self.unavailable(what, error) from error
        try:
            # Not `wait_for`, which up to Python 3.11 may drop a cancellation that comes together with the answer.
            async with limit:
                result = await future
        except TimeoutError:
            if not has_begun:
                raise self.unavailable(what, TimeoutError(f"no thread was free for it within {seconds:g} s")) from None
            why = f"the Docker engine {self.address.key} cannot be reached ({what}): no answer within {seconds:g} s"
            self._failed(kind, why)
            raise EngineUnavailable(why) from None
        except EngineUnavailable as error:
            self._failed(kind, str(error))
            raise
        except Exception:
            # Whatever it says of the request, the engine answered.
            self._answered(kind)
            raise
        self._answered(kind)
        return result

    def _failed(self, kind: Kind, why: str) -> None:
        self.had_trouble = True
        self._heard(kind, why)

    @property
    def seconds_since_answer(self) -> float:
        """How long ago it answered a call."""
        return time.monotonic() - self._answered_at

    def _answered(self, kind: Kind) -> None:
        self._answered_at = time.monotonic()
        if self.trouble:
            # It may have come back as another version: the next call asks again.
            self._forget_client()
        self.trouble = ""
        self._heard(kind, "")


def is_engines_fault(error: APIError) -> bool:
    """Whether an answer speaks of trouble at the engine rather than of the request."""
    if error.status_code is None:
        return True
    return error.status_code >= 500 and not any(words in explanation(error).lower() for words in _REQUESTS_FAULT)


#: What engines say with status 500 although the request is at fault.
_REQUESTS_FAULT = (
    "oci runtime",
    "invalid mount",
    "bind source path",
    "could not select device driver",
    "unable to find user",
    "unable to find group",
    "linux spec",
    "cannot mkdir",
    "security-opt",
    "custom device",
    "seccomp profile",
    "invalid reference",
)


def explanation(error: APIError) -> str:
    """The engine's own words."""
    text = error.explanation
    return cut(text.decode(errors="replace") if isinstance(text, bytes) else str(text or error))


def cut(words: str) -> str:
    """An engine's words without their middle where they are very long: they may quote a whole command."""
    words = words.strip()
    return (
        words if len(words) <= _LONGEST_WORDS else f"{words[: _LONGEST_WORDS // 2]} … {words[-_LONGEST_WORDS // 2 :]}"
    )


def _short(error: BaseException) -> str:
    """The innermost reason, without the SDK's wrapping, or what TLS has to do with it."""
    if isinstance(error, APIError):
        return explanation(error)[:300]
    seen: BaseException = error
    while not isinstance(seen, TlsTrouble | TlsFileError | NoEngine):
        inner = seen.__cause__ or seen.__context__
        reason = getattr(seen, "reason", None)
        if isinstance(reason, BaseException):
            inner = reason
        if inner is None or inner is seen:
            break
        seen = inner
    text = str(seen) or type(seen).__name__
    return text if len(text) <= 300 else f"{text[:300]}..."
