"""A proxy before MongoDB that ends a process's connection for good at one of its writes."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from tests.services.tcp_proxy import Filter, TcpProxy

_CHANGES = (b"insert\0", b"update\0", b"delete\0", b"findAndModify\0")
#: Header of a message, flags, kind of the first section, length of its document and type of its first value.
_COMMAND = 16 + 4 + 1 + 4 + 1


class MortalConnection(TcpProxy):
    """Passes on everything up to the `last`-th write (1-based), which still arrives or does not; then nothing."""

    def __init__(self, target: tuple[str, int], *, last: int, arrives: bool) -> None:
        self.last = last
        self.arrives = arrives
        self.writes = 0
        super().__init__(target)

    @property
    def is_dead(self) -> bool:
        """Whether the write was reached."""
        return self.writes >= self.last

    def _filters(self) -> tuple[Filter, Filter]:
        stream = _Stream()

        def asked(data: bytes) -> bytes:
            passed = b""
            for message in stream.messages(data):
                if self.is_dead:
                    raise OSError("dead")
                if message.startswith(_CHANGES, _COMMAND):
                    self.writes += 1
                    if self.is_dead and not self.arrives:
                        raise OSError("dead")
                passed += message
            return passed

        def answered(data: bytes) -> bytes:
            if self.is_dead:
                raise OSError("dead")
            return data

        return asked, answered


@dataclass(slots=True)
class _Stream:
    _rest: bytes = field(default=b"")

    def messages(self, data: bytes) -> list[bytes]:
        self._rest += data
        found = []
        while len(self._rest) >= 4:
            (size,) = struct.unpack_from("<i", self._rest)
            if len(self._rest) < size:
                break
            found.append(self._rest[:size])
            self._rest = self._rest[size:]
        return found
