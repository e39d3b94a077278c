"""A TCP proxy in front of a server, which a test makes refuse, hang, cut or slow down."""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType

_READ = 64 * 1024

#: Gets data that came from one side and gives what the other gets; may block.
Filter = Callable[[bytes], bytes]


class TcpProxy:
    """Listens on a port of the loopback address and passes everything on to `target`."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._flows = threading.Event()
        self._flows.set()
        self._delay = 0.0
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._listener: socket.socket | None = None
        self._placeholder: socket.socket | None = None
        self._listen(0)
        #: Where it listens, for as long as it lives.
        self.port = self._bound_port()

    @property
    def url(self) -> str:
        """As in DOCKER_HOST."""
        return f"tcp://127.0.0.1:{self.port}"

    @property
    def connections(self) -> int:
        """How many are open at both ends now, also while it hangs and passes no end on."""
        with self._lock:
            return sum(not any(map(_is_left, pair)) for pair in self._pairs)

    def __enter__(self) -> TcpProxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.refuse()
        if self._placeholder is not None:
            self._placeholder.close()

    def pass_on(self, *, delay: float = 0.0) -> None:
        """Work, with `delay` seconds before each piece of data, in either direction."""
        self._delay = delay
        if self._listener is None:
            self._listen(self.port)
        self._flows.set()

    def hang(self) -> None:
        """Keep connections and take new ones, but let nothing through until told otherwise."""
        self._flows.clear()

    def cut(self) -> None:
        """Reset what is connected; new connections are taken."""
        with self._lock:
            pairs, self._pairs = self._pairs, set()
        for each in itertools.chain.from_iterable(pairs):
            _shut(each)

    def refuse(self) -> None:
        """Reset what is connected, and refuse new connections."""
        listener, self._listener = self._listener, None
        if listener is not None:
            _shut(listener)
            # The port stays taken, or somebody else might answer there.
            self._placeholder = _bound(self.port)
        self.cut()
        self._flows.set()

    def _listen(self, port: int) -> None:
        if self._placeholder is not None:
            self._placeholder.close()
            self._placeholder = None
        listener = _bound(port)
        listener.listen(128)
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _bound_port(self) -> int:
        assert self._listener is not None
        return int(self._listener.getsockname()[1])

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self._target, timeout=10)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            pair = (near, far)
            with self._lock:
                refuses = self._listener is not listener
                if not refuses:
                    self._pairs.add(pair)
            if refuses:
                # Accepted just before, and too late to be cut with the others.
                _shut(near)
                _shut(far)
                return
            asked, answered = self._filters()
            for source, sink, filtered in ((near, far, asked), (far, near, answered)):
                threading.Thread(target=self._pump, args=(pair, source, sink, filtered), daemon=True).start()

    def _filters(self) -> tuple[Filter, Filter]:
        """For each new connection, what to do with data on its way to the target, and back."""
        return bytes, bytes

    def _pump(
        self, pair: tuple[socket.socket, socket.socket], source: socket.socket, sink: socket.socket, filtered: Filter
    ) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_READ):
                self._flows.wait()
                if self._delay:
                    time.sleep(self._delay)
                sink.sendall(filtered(data))
        with self._lock:
            self._pairs.discard(pair)
        _shut(source)
        _shut(sink)


def _bound(port: int) -> socket.socket:
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", port))
    return bound


def _is_left(each: socket.socket) -> bool:
    """Whether the other end has hung up; what it sent before may still be unread."""
    poll = select.poll()
    poll.register(each, select.POLLRDHUP)
    return bool(poll.poll(0))


def _shut(each: socket.socket) -> None:
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()
