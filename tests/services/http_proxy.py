"""A proxy before an HTTP server that notes requests, holds single ones or their answers back, or answers itself."""

from __future__ import annotations

import re
import threading

from tests.services.tcp_proxy import Filter, TcpProxy

_REQUEST = re.compile(rb"([A-Z]+) (?:/v[0-9.]+)?(/\S*) HTTP/1\.[01]\r\n")


class HttpProxy(TcpProxy):
    """For clients that send a request only when they have the answer to the one before, as most do."""

    def __init__(self, target: tuple[str, int]) -> None:
        #: What was asked for so far, such as `GET /containers/json?all=1`, without the API's version.
        self.requests: list[str] = []
        self._muted: re.Pattern[str] | None = None
        self._cut_off: re.Pattern[str] | None = None
        self._held: re.Pattern[str] | None = None
        self._own_answers: dict[re.Pattern[str], bytes] = {}
        self._let_go = threading.Event()
        #: Whether answers to come say that the connection is closed behind them, as those of many proxies do.
        self.announces_close = False
        #: Set when a request is held.
        self.holding = threading.Event()
        super().__init__(target)

    def mute(self, pattern: str) -> None:
        """Let nothing but the head of the answer through where the request matches; the connection stays open."""
        self._muted = re.compile(pattern)

    def cut_off(self, pattern: str) -> None:
        """Close the connection on which a request that matches comes, instead of passing it on."""
        self._cut_off = re.compile(pattern)

    def hold_next(self, pattern: str) -> None:
        """Keep the next request that matches from the server until `let_go`."""
        self._held = re.compile(pattern)

    def answer(self, pattern: str, status: int, body: str = "{}") -> None:
        """Answer requests that match, in place of the server, with JSON."""
        head = f"HTTP/1.1 {status} Said By The Proxy\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        self._own_answers[re.compile(pattern)] = f"{head}\r\n\r\n{body}".encode()

    def swallow(self, pattern: str) -> None:
        """Give requests that match no answer, in place of the server."""
        self._own_answers[re.compile(pattern)] = b""

    def behave(self) -> None:
        """Leave it to the server again to answer."""
        self._own_answers.clear()

    def let_go(self) -> None:
        """Pass on what is held."""
        self._let_go.set()

    def refuse(self) -> None:
        """Let go, too: nothing waits for a proxy that is gone."""
        self._let_go.set()
        super().refuse()

    def count(self, pattern: str) -> int:
        """How many requests matched so far."""
        return sum(re.search(pattern, request) is not None for request in list(self.requests))

    def _filters(self) -> tuple[Filter, Filter]:
        request = ""
        is_in_body = False
        own: bytes | None = None

        def asked(data: bytes) -> bytes:
            nonlocal request, is_in_body, own
            if found := _REQUEST.match(data):
                request, is_in_body = f"{found[1].decode()} {found[2].decode()}", False
                self.requests.append(request)
                if self._cut_off is not None and self._cut_off.search(request):
                    raise ConnectionResetError
                if self._held is not None and self._held.search(request):
                    self._held = None
                    self.holding.set()
                    self._let_go.wait()
                answers = list(self._own_answers.items())
                own = next((answer for pattern, answer in answers if pattern.search(request)), None)
                if own:
                    # Whatever the server answers is what the own answer goes in place of.
                    return b"HEAD / HTTP/1.1\r\nHost: server\r\n\r\n"
            return data if own is None else b""

        def answered(data: bytes) -> bytes:
            nonlocal is_in_body
            if own is not None:
                return own
            if self.announces_close and data.startswith(b"HTTP/1.1 "):
                data = data.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
            if self._muted is None or not self._muted.search(request):
                return data
            if is_in_body:
                return b""
            head, end, _ = data.partition(b"\r\n\r\n")
            is_in_body = bool(end)
            return head + end

        return asked, answered
