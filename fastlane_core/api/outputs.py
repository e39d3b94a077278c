"""What a run wrote, out of storage: as exact bytes in pieces, or as text that JSON can carry."""

from __future__ import annotations

import codecs
from collections.abc import AsyncIterator

from fastlane_core.contracts.storage import Storage
from fastlane_core.models import Stream

#: Between stdout and stderr where both are given as one text.
SEPARATOR = "\n-=-\n"
#: Read from storage at a time.
PIECE_BYTES = 256 * 1024


async def read_output(storage: Storage, execution_id: str, stream: Stream) -> AsyncIterator[bytes]:
    """Everything stored of one stream, in pieces. Raises StorageUnavailable."""
    after = 0
    while chunks := await storage.read_log(execution_id, after=after, stream=stream, max_bytes=PIECE_BYTES):
        for chunk in chunks:
            yield chunk.data
        after = chunks[-1].sequence


async def read_text(storage: Storage, execution_id: str, stream: Stream, *, limit: int) -> tuple[str, bool]:
    """The first `limit` bytes of a stream as text, and whether there are more. Raises StorageUnavailable."""
    decoder = text_decoder()
    texts: list[str] = []
    room = limit
    async for data in read_output(storage, execution_id, stream):
        texts.append(decoder.decode(data[:room]))
        if len(data) > room:
            return "".join(texts), True
        room -= len(data)
    texts.append(decoder.decode(b"", final=True))
    return "".join(texts), False


def text_decoder() -> codecs.IncrementalDecoder:
    """A decoder of UTF-8 that comes in pieces; bytes that are none show as `\\xff`."""
    return codecs.getincrementaldecoder("utf-8")("backslashreplace")
