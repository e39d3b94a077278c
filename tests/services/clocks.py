"""Servers whose clocks are wrong: a proxy in front of a real one changes the times that it tells."""

from __future__ import annotations

import re
import struct

from tests.services.tcp_proxy import Filter, TcpProxy

_REDIS_TIME = re.compile(rb"\*2\r\n\$10\r\n(\d{10})\r\n\$(\d)\r\n")
#: A date within the answer to `hello`.
_MONGO_TIME = re.compile(rb"\x09localTime\x00(.{8})", re.DOTALL)


class WrongClock(TcpProxy):
    """In front of Redis or MongoDB, whose clock is ahead by `seconds`."""

    def __init__(self, port: int, seconds: int, host: str = "127.0.0.1") -> None:
        self._seconds = seconds
        super().__init__((host, port))

    def _filters(self) -> tuple[Filter, Filter]:
        return bytes, self._changed

    def _changed(self, data: bytes) -> bytes:
        return _MONGO_TIME.sub(self._mongo, _REDIS_TIME.sub(self._redis, data))

    def _redis(self, found: re.Match[bytes]) -> bytes:
        return found[0].replace(found[1], b"%d" % (int(found[1]) + self._seconds))

    def _mongo(self, found: re.Match[bytes]) -> bytes:
        (milliseconds,) = struct.unpack("<q", found[1])
        return found[0][:-8] + struct.pack("<q", milliseconds + 1000 * self._seconds)
