"""Decoding a container's log: which bytes went to which stream.

The engine multiplexes both streams into frames of an 8-byte header (stream, three zeros, big-endian length) and a
payload (Docker Engine API, "Attach to a container: stream format"). With `timestamps` each payload begins with an
RFC 3339 time in UTC and a space. A line longer than 16 KiB comes as several frames that all bear the time of the first.

Engines before version 23 (API 1.42) drop the newline of such a line when they read what their log driver `local` wrote.
It is put back: in the place of an empty frame, or where a frame of another time follows. Only whether the very last
line of a stream had one is not known then, if it is longer than 16 KiB: nothing is added that may not have been
written.
"""

from __future__ import annotations

import calendar
import struct
import time
from collections.abc import Iterable, Iterator

from fastlane_core.errors import EngineUnavailable
from fastlane_core.models import Output, Stream
from fastlane_docker.logs.positions import Positions

#: Stream and length.
_unpack_header = struct.Struct(">BxxxL").unpack_from
_HEADER = 8
#: Length of a time without its fraction.
_SECOND = 19
_NEWLINE = 0x0A
_STREAMS = {1: Stream.STDOUT, 2: Stream.STDERR}
#: The engine reports its own trouble with the log in frames of this number.
_SYSTEM_ERROR = 3
#: Neighbouring frames of one stream are joined up to so many bytes.
_JOINED = 64 * 1024


class FrameReader:
    """Turns the bytes of one answer of `/logs` into outputs."""

    def __init__(self, positions: Positions) -> None:
        self._positions = positions
        self._rest = b""
        #: The times of lines whose end has not come, by the number of their stream.
        self._open_lines: dict[int, bytes] = {}
        #: The last complete frame, with its header; empty before the first.
        self.last = b""
        self._second_text = b""
        self._second = 0

    def feed(self, data: bytes) -> list[Output]:
        """Outputs that are complete now. Raises EngineUnavailable if the engine fails.

        Frames of one stream and second are taken together: most logs are many short lines of the same moment, and what
        is done for each frame is most of the work.
        """
        buffer = self._rest + data
        outputs: list[Output] = []
        payloads: list[bytes] = []
        alike: tuple[int, bytes, bool] | None = None
        stamp, size = b"", 0
        last = start = 0
        end = len(buffer)
        while end - start >= _HEADER:
            number, length = _unpack_header(buffer, start)
            time_at = start + _HEADER
            stop = time_at + length
            if stop > end:
                break
            payload_at = buffer.find(b" ", time_at, stop) + 1
            ends_line = payload_at == stop or buffer[stop - 1] == _NEWLINE
            # Parts of a line are alike only if they are parts of the same one.
            this = (number, buffer[time_at : time_at + _SECOND if ends_line else payload_at], ends_line)
            if this != alike or size >= _JOINED or not payload_at:
                self._take(alike, stamp, payloads, outputs)
                if number not in _STREAMS or not payload_at:
                    raise _refusal(number, buffer[time_at:stop])
                alike, stamp, payloads, size = this, buffer[time_at:payload_at], [], 0
            payloads.append(buffer[payload_at:stop] or b"\n")
            size += length
            last, start = start, stop
        self._take(alike, stamp, payloads, outputs)
        if start:
            self.last = buffer[last:start]
        self._rest = buffer[start:]
        return outputs

    def _take(
        self, alike: tuple[int, bytes, bool] | None, stamp: bytes, payloads: list[bytes], outputs: list[Output]
    ) -> None:
        """Make an output of the payloads of frames that are alike, the first of them with the time `stamp`."""
        if alike is None:
            return
        number, _, ends_line = alike
        stream, second = _STREAMS[number], self._parse_second(stamp[:_SECOND])
        # The line before had an end, which the engine dropped.
        begins_line = self._open_lines.get(number, stamp) != stamp
        if begins_line:
            payloads[0] = b"\n" + payloads[0]
        if ends_line:
            self._open_lines.pop(number, None)
        else:
            self._open_lines[number] = stamp
        new = self._positions.add(stream, second, begins_line=begins_line, ends_line=ends_line, count=len(payloads))
        if data := b"".join(payloads[len(payloads) - new :]):
            outputs.append(Output(stream=stream, data=data, position=self._positions.current))

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


def _refusal(number: int, payload: bytes) -> EngineUnavailable:
    words = payload.decode(errors="replace").strip()
    told = f"the engine says: {words}" if number == _SYSTEM_ERROR else f"a frame of stream {number} is {words[:100]!r}"
    return EngineUnavailable(f"the log cannot be read: {told}")
