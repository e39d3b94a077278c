"""One Docker engine: its client, its threads, and its failures as Fastlane's errors.

The SDK blocks, so every call runs in a thread. Short calls have a pool of their own, apart from the streams (logs,
pulls, events), which may last for hours; each engine has its own, so a slow one delays no other.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

import requests
import urllib3
from docker import APIClient, auth
from docker.constants import DEFAULT_DOCKER_API_VERSION
from docker.errors import APIError, DockerException
from requests.adapters import HTTPAdapter

from fastlane_core.errors import EngineUnavailable
from fastlane_docker.addresses import Address

T = TypeVar("T")

#: Short calls under way at a time, and streams.
_CALLS = 16
_STREAMS = 1024
#: Seconds to reach an engine.
CONNECT_SECONDS = 10.0
#: What a call raises when the engine, not the request, is at fault.
TROUBLE = (
    requests.exceptions.RequestException,
    urllib3.exceptions.HTTPError,
    OSError,
)


class Client(APIClient):  # type: ignore[misc]
    """The SDK's client, without what the environment would change about it, and with bounded streams."""

    # `requests` would send calls for plain TCP hosts through HTTP_PROXY, and take other authorities for TLS.
    trust_env = property(lambda self: False, lambda self, value: None)

    def __init__(self, url: str, timeout: float) -> None:
        """Connects at the first call; call `negotiate` before others."""
        super().__init__(base_url=url, version=DEFAULT_DOCKER_API_VERSION, timeout=timeout, max_pool_size=_CALLS)
        if url.startswith("tcp://"):
            self.mount("http://", HTTPAdapter(pool_connections=1, pool_maxsize=_CALLS))

    def negotiate(self) -> None:
        """Speak the engine's version of the API. The SDK can do so while it is made, but leaves sockets open then."""
        self._version = str(self.version(api_version=False)["ApiVersion"])

    def open_stream(self, path: str, params: dict[str, Any], quiet_seconds: float) -> requests.Response:
        """GET an endless answer; reading raises when nothing comes for `quiet_seconds`."""
        answer = self._get(self._url(path), params=params, stream=True, timeout=(CONNECT_SECONDS, quiet_seconds))
        self._raise_for_status(answer)
        return cast("requests.Response", answer)

    def open_pull(self, repository: str, tag: str, quiet_seconds: float) -> requests.Response:
        """Pull an image; the answer's lines are JSON steps. Credentials come from Docker's own configuration."""
        registry, _ = auth.resolve_repository_name(repository)
        header = auth.get_config_header(self, registry)
        answer = self._post(
            self._url("/images/create"),
            params={"fromImage": repository, "tag": tag},
            headers={"X-Registry-Auth": header} if header else {},
            stream=True,
            timeout=(CONNECT_SECONDS, quiet_seconds),
        )
        self._raise_for_status(answer)
        return cast("requests.Response", answer)


class Engine:
    """An engine that calls go to."""

    def __init__(self, address: Address, timeout: float) -> None:
        self.address = address
        self._timeout = timeout
        self._lock = threading.Lock()
        self._client: Client | None = None
        self._calls = ThreadPoolExecutor(_CALLS, thread_name_prefix=f"docker {address.key}")
        self._streams = ThreadPoolExecutor(_STREAMS, thread_name_prefix=f"docker stream {address.key}")
        #: Why it could not be reached when it was last looked at; "" if it answered, None before the first look.
        self.trouble: str | None = None

    async def call(self, what: str, work: Callable[[Client], T]) -> T:
        """Do `work` in a thread. Raises what it raises, with trouble to reach the engine as EngineUnavailable."""
        return await self._in_thread(self._calls, what, work)

    async def long_call(self, what: str, work: Callable[[Client], T]) -> T:
        """`call` for work that may take minutes."""
        return await self._in_thread(self._streams, what, work)

    def submit_stream(self, work: Callable[[], None]) -> None:
        """Run `work`, which reads a stream, in a thread of its own."""
        self._streams.submit(work)

    async def ping(self) -> None:
        """See whether it answers, and remember."""
        try:
            await self.call("ping", lambda client: client.ping())
        except EngineUnavailable as error:
            self.trouble = str(error)
        else:
            self.trouble = ""

    def client(self) -> Client:
        """The client, made at first use; blocks. Raises what `translated` makes EngineUnavailable of."""
        with self._lock:
            if self._client is None:
                client = Client(self.address.url, self._timeout)
                try:
                    client.negotiate()
                except BaseException:
                    client.close()
                    raise
                self._client = client
            return self._client

    def close(self) -> None:
        """Let go of threads and connections; calls under way end by themselves."""
        for pool in (self._calls, self._streams):
            pool.shutdown(wait=False, cancel_futures=True)
        if self._client is not None:
            self._client.close()

    def unavailable(self, what: str, error: BaseException) -> EngineUnavailable:
        """The error for a failed call."""
        return EngineUnavailable(f"the Docker engine {self.address.key} cannot be reached ({what}): {_short(error)}")

    async def _in_thread(self, pool: ThreadPoolExecutor, what: str, work: Callable[[Client], T]) -> T:
        def run() -> T:
            try:
                return work(self.client())
            except APIError as error:
                if is_engines_fault(error):
                    raise self.unavailable(what, error) from error
                raise
            except (*TROUBLE, DockerException) as error:
                raise self.unavailable(what, error) from error

        return await asyncio.get_running_loop().run_in_executor(pool, run)


def is_engines_fault(error: APIError) -> bool:
    """Whether an answer speaks of trouble at the engine rather than of the request."""
    status = error.status_code
    return status is None or status in (502, 503, 504) or (status == 500 and _speaks_of_shutdown(error))


def explanation(error: APIError) -> str:
    """The engine's own words."""
    text = error.explanation
    return (text.decode(errors="replace") if isinstance(text, bytes) else str(text or error)).strip()


def lines_of(answer: requests.Response) -> Iterator[bytes]:
    """The lines of a streamed answer as they come."""
    rest = b""
    for data in answer.raw.stream(65536, decode_content=True):
        *lines, rest = (rest + data).split(b"\n")
        yield from (line for line in lines if line.strip())
    if rest.strip():
        yield rest


def _speaks_of_shutdown(error: APIError) -> bool:
    text = explanation(error).lower()
    return any(words in text for words in ("shutting down", "containerd", "context deadline exceeded", "ttrpc: closed"))


def _short(error: BaseException) -> str:
    """The innermost reason, without the SDK's wrapping."""
    seen: BaseException = error
    while True:
        inner = seen.__cause__ or seen.__context__
        reason = getattr(seen, "reason", None)
        if isinstance(reason, BaseException):
            inner = reason
        if inner is None or inner is seen:
            break
        seen = inner
    text = str(seen) or type(seen).__name__
    return text if len(text) <= 300 else f"{text[:300]}..."
