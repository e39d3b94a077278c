"""Requests over keep-alive connections, by a loop that costs little beside what it measures."""

from __future__ import annotations

import selectors
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

#: Seconds that an answer may take before the load is given up; far beyond what any does.
_PATIENCE = 60.0
_HEAD_END = b"\r\n\r\n"


@dataclass(kw_only=True)
class Load:
    """What came of a load."""

    seconds: float = 0.0
    #: CPU seconds that the generator took.
    cpu_seconds: float = 0.0
    #: Answers by status.
    statuses: Counter[int] = field(default_factory=Counter)
    #: Seconds that each answer took, in the order in which they came.
    latencies: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Answers per second."""
        return len(self.latencies) / self.seconds

    @property
    def ceiling(self) -> float:
        """Answers per second at which the generator alone would fill a core."""
        return len(self.latencies) / max(self.cpu_seconds, 1e-9)


def request_bytes(method: str, url: str, body: bytes = b"") -> bytes:
    """An HTTP/1.1 request as it goes over the wire."""
    parts = urlsplit(url)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    lines = [f"{method} {target} HTTP/1.1", f"Host: {parts.netloc}", "Accept: */*"]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join(lines).encode() + _HEAD_END + body


def run_load(
    address: tuple[str, int],
    request: Callable[[], bytes],
    *,
    connections: int,
    seconds: float | None = None,
    requests: int | None = None,
) -> Load:
    """Keep so many connections busy, each with one request at a time, for so long or until so many were answered.

    `request` makes the next one. Raises OSError where the server goes away, TimeoutError where it is silent.
    """
    load = Load()
    cpu, begun = time.process_time(), time.perf_counter()
    until = begun + seconds if seconds is not None else float("inf")
    left = requests if requests is not None else -1
    with selectors.DefaultSelector() as selector:
        for _ in range(connections if left < 0 else min(connections, left)):
            selector.register(_Connection(address), selectors.EVENT_READ).fileobj.ask(request())  # type: ignore[union-attr]
            left -= 1
        while selector.get_map():
            ready = selector.select(_PATIENCE)
            if not ready:
                raise TimeoutError(f"{address} gave no answer for {_PATIENCE:g} s")
            for key, _ in ready:
                connection = key.fileobj
                assert isinstance(connection, _Connection)
                status = connection.receive()
                if status is None:
                    continue
                now = time.perf_counter()
                load.statuses[status] += 1
                load.latencies.append(now - connection.asked_at)
                if now >= until or left == 0:
                    selector.unregister(connection)
                    connection.close()
                    continue
                left -= 1
                if connection.ending:
                    selector.unregister(connection)
                    connection.close()
                    connection = _Connection(address)
                    selector.register(connection, selectors.EVENT_READ)
                connection.ask(request())
    load.seconds = time.perf_counter() - begun
    load.cpu_seconds = time.process_time() - cpu
    return load


class _Connection:
    """One connection, with at most one request under way."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._socket = socket.create_connection(address, _PATIENCE)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = b""
        self.asked_at = 0.0
        #: Whether the server closes it after the answer.
        self.ending = False

    def fileno(self) -> int:
        return self._socket.fileno()

    def ask(self, request: bytes) -> None:
        """Send the next request."""
        self._received = b""
        self.asked_at = time.perf_counter()
        self._socket.sendall(request)

    def receive(self) -> int | None:
        """Take what came; the status once the answer is complete."""
        data = self._socket.recv(1 << 20)
        if not data:
            raise ConnectionResetError("the server closed a connection in the middle of an answer")
        self._received += data
        head, end, body = self._received.partition(_HEAD_END)
        if not end:
            return None
        headers = _headers(head)
        if len(body) < int(headers[b"content-length"]):
            return None
        self.ending = headers.get(b"connection") == b"close"
        return int(head[9:12])

    def close(self) -> None:
        self._socket.close()


def _headers(head: bytes) -> Mapping[bytes, bytes]:
    pairs = (line.partition(b":") for line in head.split(b"\r\n")[1:])
    return {name.lower(): value.strip() for name, _, value in pairs}
