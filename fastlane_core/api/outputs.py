"""What a run wrote, out of storage: as exact bytes in pieces, or as text that JSON can carry."""

from __future__ import annotations

import codecs
from collections.abc import AsyncIterator, Mapping

from fastlane_core.contracts.storage import Storage
from fastlane_core.models import Execution, Stream

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


async def read_texts(storage: Storage, execution: Execution, *, limit: int) -> Mapping[Stream, tuple[str | None, bool]]:
    """The first `limit` bytes of each stream as text, and whether there are more; None for what has not run.

    Raises StorageUnavailable.
    """
    if execution.started_at is None:
        return dict.fromkeys(Stream, (None, False))
    outputs = await _read_whole(storage, execution)
    if outputs is None:
        outputs = {stream: await _read_beyond(storage, execution.id, stream, limit) for stream in Stream}
    return {stream: _text(data, limit) for stream, data in outputs.items()}


async def _read_whole(storage: Storage, execution: Execution) -> Mapping[Stream, bytes] | None:
    """Everything that it wrote, where that is little enough to be read at once; None elsewhere."""
    size = execution.stdout_bytes + execution.stderr_bytes
    if not execution.status.is_final or not 0 < size <= PIECE_BYTES:
        return None
    chunks = await storage.read_log(execution.id, after=0, stream=None, max_bytes=PIECE_BYTES)
    whole = {stream: b"".join(chunk.data for chunk in chunks if chunk.stream is stream) for stream in Stream}
    return whole if sum(map(len, whole.values())) == size else None


async def _read_beyond(storage: Storage, execution_id: str, stream: Stream, limit: int) -> bytes:
    """All of a stream, or more than `limit` bytes of it."""
    read = bytearray()
    async for data in read_output(storage, execution_id, stream):
        read += data
        if len(read) > limit:
            break
    return bytes(read)


def _text(data: bytes, limit: int) -> tuple[str, bool]:
    is_cut = len(data) > limit
    return text_decoder().decode(data[:limit], final=not is_cut), is_cut


def text_decoder() -> codecs.IncrementalDecoder:
    """A decoder of UTF-8 that comes in pieces; bytes that are none show as `\\xff`."""
    return codecs.getincrementaldecoder("utf-8")("backslashreplace")
