"""The Docker SDK's client, with time-outs everywhere and without what a worker's environment would change about it."""

from __future__ import annotations

import contextlib
import io
import socket
import ssl
from collections.abc import Iterator, Mapping
from typing import Any, cast
from urllib.parse import urlencode, urlsplit

import requests
from docker import APIClient
from docker.constants import DEFAULT_DOCKER_API_VERSION
from docker.errors import APIError, DockerException
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from urllib3.connection import HTTPConnection

from fastlane_docker.engines.addresses import TlsFiles
from fastlane_docker.engines.certificates import make_context, state_of
from fastlane_docker.engines.chunked import ChunkedBody
from fastlane_docker.engines.tls_trouble import trouble_of_plain_http, trouble_of_tls

#: Seconds to reach an engine, and to learn its version.
_CONNECT_SECONDS = 5.0
#: A connection whose other end is gone is noticed after some 30 seconds of silence.
_KEEPALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
]
_READ = 64 * 1024
#: Methods whose requests say that they have no body.
_WITH_BODY = frozenset({"PATCH", "POST", "PUT"})


class NoEngine(DockerException):  # type: ignore[misc]
    """What answers is no Docker engine, or none that can be used."""


class Client(APIClient):  # type: ignore[misc]
    """One engine's API; blocks, and may be used by many threads at a time."""

    # `requests` would send calls for plain TCP hosts through HTTP_PROXY, and take other authorities for TLS.
    trust_env = property(lambda self: False, lambda self, value: None)

    def __init__(self, url: str, timeout: float, *, connections: int, tls: TlsFiles | None = None) -> None:
        """Use `connected`."""
        super().__init__(base_url=url, version=DEFAULT_DOCKER_API_VERSION, timeout=timeout, max_pool_size=connections)
        self._files = tls
        self._files_state = state_of(tls) if tls else ()
        # The SDK's own pool for TCP is of ten connections whatever it is told.
        if url.startswith("tcp://"):
            self.mount("http://", _PlainAdapter(pool_connections=1, pool_maxsize=connections))
        elif url.startswith("https://"):
            self.mount("https://", _TlsAdapter(tls or TlsFiles(), pool_connections=1, pool_maxsize=connections))

    @classmethod
    def connected(cls, url: str, timeout: float, *, connections: int, tls: TlsFiles | None = None) -> Client:
        """A client that speaks the engine's version of the API; `timeout` in seconds is that of each call.

        An https:// `url` means TLS, with `tls`. Raises what `requests` and the SDK raise for an engine that does not
        answer, NoEngine and TlsFileError.
        """
        client = cls(url, timeout, connections=connections, tls=tls)
        try:
            # The SDK could ask by itself while it is made, but through HTTP_PROXY, and leaving sockets open on failure.
            version = client._get(f"{client.base_url}/version", timeout=_CONNECT_SECONDS)
            client._version = str(client._result(version, json=True)["ApiVersion"])
        except APIError as error:
            client.close()
            raise NoEngine(f"{url} answers with status {error.status_code}, not like a Docker engine") from error
        except (KeyError, TypeError, ValueError) as error:
            client.close()
            raise NoEngine(f"{url} does not answer like a Docker engine") from error
        except BaseException:
            client.close()
            raise
        return client

    def request(  # type: ignore[no-untyped-def]
        self, method: str, url: str, *, params=None, data=None, headers=None, timeout=None, stream=False, **others: Any
    ) -> requests.Response:
        """Send a request to the engine, as `requests` does at more than twice the cost.

        Engines have no cookies, authorities or proxies that could be merged in, and redirect nobody. What else may be
        asked of a session is left to it.
        """
        others.pop("allow_redirects", None)
        if others or not url.isascii() or not isinstance(data, str | bytes | None):
            left = super().request(
                method, url, params=params, data=data, headers=headers, timeout=timeout, stream=stream, **others
            )
            return cast("requests.Response", left)
        asked = requests.PreparedRequest()
        asked.method = method.upper()
        asked.url = f"{url}?{_encoded(params)}" if params else url
        asked.body = data.encode() if isinstance(data, str) else data
        asked.headers = CaseInsensitiveDict({**self.headers, **(headers or {})})
        if asked.body is not None or asked.method in _WITH_BODY:
            asked.headers["Content-Length"] = str(len(asked.body or b""))
        answer = self.get_adapter(url).send(
            asked, stream=stream, timeout=timeout, verify=self.verify, cert=self.cert, proxies={}
        )
        if answer.is_redirect:
            answer.close()
            raise NoEngine(f"it answers with status {answer.status_code}, not like a Docker engine")
        if not stream:
            # Read here and now, so that its connection is free for others.
            _ = answer.content
        return cast("requests.Response", answer)

    def is_outdated(self) -> bool:
        """Whether the files of its TLS have changed since: new connections need a new client."""
        return self._files is not None and state_of(self._files) != self._files_state

    def ping_within(self, seconds: float) -> None:
        """Return if the engine answers in time, else raise."""
        answer = self._get(self._url("/_ping"), timeout=seconds)
        # Every other status: no request can be wrong about a ping.
        if answer.status_code != requests.codes.ok:
            raise NoEngine(
                f"it answers a ping with status {answer.status_code}: see the engine, or what stands before it"
            )

    def _raise_for_status(self, response: requests.Response) -> None:
        try:
            super()._raise_for_status(response)
        except (KeyError, TypeError) as error:
            # The SDK looks for the message that all errors of engines have; this one is another server's.
            raise NoEngine(f"it answers with status {response.status_code}, not like a Docker engine") from error

    @contextlib.contextmanager
    def streaming(
        self, path: str, params: Mapping[str, Any], *, quiet_seconds: float | None
    ) -> Iterator[requests.Response]:
        """GET an endless answer, which begins in the usual time; reading raises after `quiet_seconds` of silence."""
        answer = self._get(self._url(path), params=params, stream=True)
        with contextlib.closing(cast("requests.Response", answer)) as opened:
            self._raise_for_status(opened)
            limit_silence(opened, quiet_seconds)
            yield opened

    @contextlib.contextmanager
    def pulling(
        self, repository: str, version: str, *, platform: str, credentials: str | None, quiet_seconds: float
    ) -> Iterator[requests.Response]:
        """Pull the image of a tag or digest; the answer's lines are JSON steps. Closing it early ends the pull.

        `platform` is "" for the engine's own.
        `credentials` is the value of the header `X-Registry-Auth`.
        """
        answer = self._post(
            self._url("/images/create"),
            params={"fromImage": repository, "tag": version, "platform": platform},
            headers={"X-Registry-Auth": credentials} if credentials else {},
            stream=True,
            timeout=quiet_seconds,
        )
        with contextlib.closing(cast("requests.Response", answer)) as opened:
            self._raise_for_status(opened)
            yield opened


def _encoded(params: Mapping[str, Any]) -> str:
    return urlencode([(name, value) for name, value in params.items() if value is not None], doseq=True)


class _TcpAdapter(HTTPAdapter):
    """Notices dead connections, and waits less for a connection than for an answer."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs, socket_options=[*HTTPConnection.default_socket_options, *_KEEPALIVE])

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        timeout = kwargs.get("timeout")
        if isinstance(timeout, int | float):
            kwargs["timeout"] = (min(float(timeout), _CONNECT_SECONDS), float(timeout))
        return super().send(request, *args, **kwargs)


def limit_silence(answer: requests.Response, seconds: float | None) -> None:
    """Let reading a streamed answer raise after so many seconds without a byte, or never."""
    raw: Any = answer.raw
    # Of the stream: urllib3 knows no socket of a connection that is to be closed behind the answer, as proxies want it.
    sock = getattr(getattr(raw._fp.fp, "raw", None), "_sock", None)
    if sock is not None:
        sock.settimeout(seconds)


class _PlainAdapter(_TcpAdapter):
    """Notices engines that want TLS."""

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        answer = super().send(request, *args, **kwargs)
        if (trouble := trouble_of_plain_http(answer)) is not None:
            raise trouble
        return answer


class _TlsAdapter(_TcpAdapter):
    """Speaks TLS with the farm's own files, read once, and says what is wrong with it."""

    def __init__(self, files: TlsFiles, **options: Any) -> None:
        """Raises TlsFileError."""
        self._files = files
        self._context = make_context(files)
        super().__init__(**options)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs, ssl_context=self._context)

    def cert_verify(self, conn: Any, url: str, verify: object, cert: object) -> None:
        """Nothing: the context verifies, and `requests` would add the public authorities to it."""

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        try:
            return super().send(request, *args, **kwargs)
        except requests.exceptions.ConnectionError as error:
            target = urlsplit(str(request.url))
            where = (str(target.hostname), target.port or 0)
            if (trouble := trouble_of_tls(error, where, self._files, self._context)) is not None:
                raise trouble from error
            raise


def chunks_of(answer: requests.Response) -> Iterator[bytes]:
    """The bytes of a streamed answer as they come, as many at a time as there are. Raises TROUBLE."""
    raw: Any = answer.raw
    if not raw.chunked or "Content-Encoding" in answer.headers:
        yield from raw.stream(_READ, decode_content=True)
        return
    # What `http.client` reads from, behind the answer's head; the SDK reaches for it in the same way.
    connection = raw._fp.fp
    body = ChunkedBody()
    while not body.complete:
        data = _read(connection)
        if not data:
            raise ConnectionError("the connection was closed in the middle of an answer")
        if content := body.feed(data):
            yield content
    raw._fp.close()
    raw.release_conn()


def _read(stream: io.BufferedReader) -> bytes:
    """What has come, once something has; b"" at the end."""
    data = stream.read1(_READ)
    # Also of a connection that is to be closed behind the answer, of which urllib3 knows no socket any more.
    tls = getattr(stream.raw, "_sock", None)
    if not data or not isinstance(tls, ssl.SSLSocket):
        return data
    # One read gives one record of TLS, and engines make a record of each line: take those that have come besides.
    records = [data]
    left = _READ - len(data)
    patience = tls.gettimeout()
    tls.settimeout(0)
    try:
        while left > 0 and (data := tls.recv(left)):
            records.append(data)
            left -= len(data)
    except ssl.SSLWantReadError:
        pass
    finally:
        tls.settimeout(patience)
    return b"".join(records)


def lines_of(answer: requests.Response) -> Iterator[bytes]:
    """The lines of a streamed answer as they come."""
    rest = b""
    for data in chunks_of(answer):
        *lines, rest = (rest + data).split(b"\n")
        yield from (line for line in lines if line.strip())
    if rest.strip():
        yield rest


def hang_up(answer: requests.Response) -> None:
    """End a streamed answer from another thread: whoever reads it returns."""
    # A connection that is closed already has nothing to shut down.
    connection = answer.raw.connection
    stream = connection.sock if connection is not None else None
    if isinstance(stream, socket.socket):
        with contextlib.suppress(OSError):
            # Not the `shutdown` of a TLS socket, after which its reader would take what is encrypted for the answer.
            socket.socket.shutdown(stream, socket.SHUT_RDWR)
