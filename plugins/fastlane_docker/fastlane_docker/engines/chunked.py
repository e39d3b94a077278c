"""Decoding a chunked HTTP body (RFC 9112, section 7.1) many chunks at a time.

An engine sends each line of a log as a chunk of its own. The HTTP library takes each apart with two reads and a dozen
calls, which costs more than everything else that is done with a line.
"""

from __future__ import annotations

import re

#: The line end behind the chunk before, and this chunk's size.
_SIZE = re.compile(rb"\r\n([0-9A-Fa-f]{1,15})(?:[ \t]*;[^\r\n]*)?\r\n")
#: No line before a chunk is longer, trailers behind the last one included.
_LONGEST_LINE = 16 * 1024


class ChunkedBody:
    """The body of one answer, fed as it comes from the connection."""

    def __init__(self) -> None:
        #: Whether the body is complete, up to its very last byte: the connection can be used again.
        self.complete = False
        #: What is not decoded yet; before the first chunk, as behind each.
        self._rest = b"\r\n"
        #: Bytes still to come of a chunk that was begun.
        self._left = 0
        self._last = False

    def feed(self, data: bytes) -> bytes:
        """The content in `data` and in what was kept before it. Raises ConnectionError for what is no chunked body."""
        data = self._rest + data
        content: list[bytes] = []
        start, end = 0, len(data)
        if self._left:
            content.append(data[: self._left])
            start = len(content[0])
            self._left -= start
        match = _SIZE.match
        while not self._left and not self._last and (size := match(data, start)):
            length, start = int(size[1], 16), size.end()
            if length:
                content.append(data[start : start + length])
                start += length
                if start > end:
                    self._left, start = start - end, end
            else:
                self._last = True
        self._rest = data[start:]
        if self._last:
            self.complete = self._rest == b"\r\n" or self._rest.endswith(b"\r\n\r\n")
        if len(self._rest) > _LONGEST_LINE or (not self._last and b"\n" in self._rest[2:]):
            raise ConnectionError("the answer is not chunked as HTTP has it")
        return b"".join(content)
