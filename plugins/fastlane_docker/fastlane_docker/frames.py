"""Decoding a container's log: which bytes went to which stream.

The engine multiplexes both streams into frames of an 8-byte header (stream, three zeros, big-endian length) and a
payload (Docker Engine API, "Attach to a container: stream format"). With `timestamps` each payload begins with an
RFC 3339 time in UTC and a space. A line longer than 16 KiB comes as several frames, of which only the last ends in a
newline.
"""

from __future__ import annotations

import calendar
import time
from collections.abc import Iterable, Iterator

from fastlane_core.errors import EngineUnavailable
from fastlane_core.models import Output, Stream
from fastlane_docker.positions import Positions

_HEADER = 8
#: Length of a time without its fraction.
_SECOND = 19
_STREAMS = {1: Stream.STDOUT, 2: Stream.STDERR}
#: The engine reports its own trouble with the log in frames of this number.
_SYSTEM_ERROR = 3
#: Neighbouring frames of one stream are joined up to so many bytes.
_JOINED = 64 * 1024


class FrameReader:
    """Turns the bytes of one answer of `/logs` into outputs."""

    def __init__(self, positions: Positions) -> None:
        self._positions = positions
        self._buffer = bytearray()
        self._second_text = b""
        self._second = 0

    def feed(self, data: bytes) -> list[Output]:
        """Outputs that are complete now, one for each frame. Raises EngineUnavailable if the engine fails."""
        buffer, positions = self._buffer, self._positions
        buffer += data
        outputs: list[Output] = []
        start, end = 0, len(buffer)
        while end - start >= _HEADER:
            stop = start + _HEADER + int.from_bytes(buffer[start + 4 : start + 8], "big")
            if stop > end:
                break
            frame = bytes(buffer[start:stop])
            start = stop
            stream = _STREAMS.get(frame[0]) or _refused(frame)
            payload = frame[frame.index(b" ", _HEADER) + 1 :]
            second = self._parse_second(frame[_HEADER : _HEADER + _SECOND])
            if positions.add(stream, second, ends_line=payload.endswith(b"\n")) and payload:
                outputs.append(Output(stream=stream, data=payload, position=positions.current))
        del buffer[:start]
        return outputs

    def _parse_second(self, text: bytes) -> int:
        """`2026-01-02T03:04:05` as Unix time."""
        if text != self._second_text:
            self._second = calendar.timegm(time.strptime(text.decode("ascii"), "%Y-%m-%dT%H:%M:%S"))
            self._second_text = text
        return self._second


def joined(outputs: Iterable[Output]) -> Iterator[Output]:
    """The outputs with neighbours of one stream as one, up to a bounded size."""
    parts: list[Output] = []
    size = 0
    for output in outputs:
        if parts and (output.stream is not parts[0].stream or size + len(output.data) > _JOINED):
            yield _join(parts)
            parts, size = [], 0
        parts.append(output)
        size += len(output.data)
    if parts:
        yield _join(parts)


def _join(parts: list[Output]) -> Output:
    return Output(stream=parts[0].stream, data=b"".join(part.data for part in parts), position=parts[-1].position)


def _refused(frame: bytes) -> Stream:
    words = frame[_HEADER:].decode(errors="replace").strip()
    told = f"the engine says: {words}" if frame[0] == _SYSTEM_ERROR else f"unknown stream {frame[0]}"
    raise EngineUnavailable(f"the log cannot be read: {told}")
