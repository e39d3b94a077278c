"""Reading a container's log exactly: which bytes went to which stream, and where to go on.

The engine multiplexes both streams into frames of an 8-byte header (stream, three zeros, big-endian length) and a
payload (Docker Engine API, "Attach to a container: stream format"). With `timestamps` each payload begins with an
RFC 3339 time of nine decimals and a space. A line longer than 16 KiB comes as several frames of one time.

A position is `<unix seconds>.<nine digits>:<n>`: n frames of that time were read. Resuming asks the engine for
everything since that time, which it gives from there on inclusively, and drops those n.
"""

from __future__ import annotations

import calendar
import time
from collections.abc import Iterator

from fastlane_core.models import Output, Stream

_HEADER = 8
_STREAMS = {1: Stream.STDOUT, 2: Stream.STDERR}


class FrameReader:
    """Turns the bytes of one answer of `/logs` into outputs."""

    def __init__(self, after: str | None) -> None:
        """`after` is the position that the answer was asked from."""
        self._buffer = bytearray()
        self._time, self._count = parse_position(after)
        self._skip = self._count
        self._skip_time = self._time
        self._seconds_text = b""
        self._seconds = 0

    @property
    def position(self) -> str | None:
        """The position behind what was read; None if nothing ever was."""
        return f"{self._time}:{self._count}" if self._time else None

    def feed(self, data: bytes) -> Iterator[Output]:
        """Outputs that are complete now."""
        buffer = self._buffer
        buffer += data
        start, end = 0, len(buffer)
        while end - start >= _HEADER:
            length = int.from_bytes(buffer[start + 4 : start + 8], "big")
            if end - start - _HEADER < length:
                break
            stream = _STREAMS.get(buffer[start])
            payload = bytes(buffer[start + _HEADER : start + _HEADER + length])
            start += _HEADER + length
            if stream is not None:
                output = self._output(stream, payload)
                if output is not None:
                    yield output
        del buffer[:start]

    def _output(self, stream: Stream, payload: bytes) -> Output | None:
        stamp, _, data = payload.partition(b" ")
        when = self._parse_time(stamp)
        if when == self._skip_time and self._skip:
            self._skip -= 1
            return None
        if self._skip_time and when < self._skip_time:
            return None
        if when == self._time:
            self._count += 1
        else:
            self._time, self._count = when, 1
        return Output(stream=stream, data=data, position=f"{when}:{self._count}")

    def _parse_time(self, stamp: bytes) -> str:
        """`2026-01-02T03:04:05.000000006Z` as `<unix seconds>.000000006`."""
        seconds = stamp[:19]
        if seconds != self._seconds_text:
            parsed = time.strptime(seconds.decode("ascii"), "%Y-%m-%dT%H:%M:%S")
            self._seconds_text, self._seconds = seconds, calendar.timegm(parsed)
        fraction = stamp[20:-1].decode("ascii") if stamp[19:20] == b"." else ""
        return f"{self._seconds}.{fraction:0<9}"


def parse_position(position: str | None) -> tuple[str, int]:
    """Time and count of a position; ("", 0) for the start of the log."""
    if position is None:
        return "", 0
    when, _, count = position.partition(":")
    return when, int(count)
