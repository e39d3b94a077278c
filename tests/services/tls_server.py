"""A server that speaks TLS and then does what a test wants, for what no real engine can be made to do."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from types import TracebackType

from tests.services.certificates import Identity

#: Seconds that one connection may take.
_PATIENCE = 20.0


class TlsServer:
    """Listens on a port of the loopback address, and serves one connection after the other."""

    def __init__(self, identity: Identity, serve: Callable[[int, socket.socket, ssl.SSLContext], None]) -> None:
        """`serve` gets the number of the connection, its socket before the handshake, and the server's TLS."""
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(identity.cert, identity.key)
        self._serve = serve
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> TlsServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Wakes `accept`, which closing alone does not.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(_PATIENCE)

    def _accept(self) -> None:
        number = 0
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.settimeout(_PATIENCE)
            # A client that hangs up is none of the server's business.
            with connection, contextlib.suppress(OSError):
                self._serve(number, connection, self._context)
            number += 1
