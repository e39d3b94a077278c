"""Copying a run's output into storage, in order, without a gap or a repeat, whoever had begun it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress

from fastlane_core.contracts.storage import Storage
from fastlane_core.models import LogChunk, Output, Stream

#: A chunk in storage is at most this long, and a batch closed once it is.
_CHUNK_BYTES = 256 * 1024
#: Outputs read ahead of storage: bounds memory per run.
_READ_AHEAD = 4
#: Seconds between two writes to storage of a run that writes little by little.
_PACE = 0.1
#: Changes between the streams in one batch that are kept; beyond, a batch is ordered by stream.
_INTERLEAVINGS = 32


class LogCapture:
    """The log of one execution, continued from where storage has it."""

    def __init__(
        self, storage: Storage, execution_id: str, *, limit: int, on_stored: Callable[[], Awaitable[None]]
    ) -> None:
        """`limit` is in bytes over both streams; `on_stored` is awaited after each write."""
        self._storage = storage
        self._execution_id = execution_id
        self._limit = limit
        self._on_stored = on_stored
        self._sequence = 0
        self.bytes = {Stream.STDOUT: 0, Stream.STDERR: 0}
        #: The runner's position from which reading goes on; None for the start.
        self.position: str | None = None
        #: Whether output beyond the limit was dropped.
        self.truncated = False
        self._written_at = float("-inf")

    async def resume(self) -> None:
        """Take up the log where storage has its end. Raises StorageUnavailable."""
        last = await self._storage.last_log(self._execution_id)
        for stream, chunk in last.items():
            self.bytes[stream] = chunk.offset + len(chunk.data)
        if last:
            end = max(last.values(), key=lambda chunk: chunk.sequence)
            self._sequence, self.position = end.sequence, end.position

    async def copy(self, outputs: AsyncIterator[Output]) -> None:
        """Store outputs until they end or the limit is reached.

        Raises what the iterator raises, after storing what came before; LogConflict if somebody else wrote to the
        log; StorageUnavailable.
        """
        pipe: asyncio.Queue[Output | BaseException | None] = asyncio.Queue(_READ_AHEAD)
        pump = asyncio.create_task(_pump(outputs, pipe))
        try:
            while not self.truncated:
                batch, end = await self._next_batch(pipe)
                if batch:
                    await self._store(batch)
                if isinstance(end, BaseException):
                    raise end
                if end:
                    return
        finally:
            pump.cancel()
            with suppress(asyncio.CancelledError):
                await pump

    async def _next_batch(
        self, pipe: asyncio.Queue[Output | BaseException | None]
    ) -> tuple[list[Output], BaseException | bool]:
        """Outputs that came close together, and whether (or with what error) there is an end after them."""
        item = await pipe.get()
        loop = asyncio.get_running_loop()
        batch: list[Output] = []
        size = 0
        while True:
            if item is None:
                return batch, True
            if isinstance(item, BaseException):
                return batch, item
            batch.append(item)
            size += len(item.data)
            if size >= _CHUNK_BYTES:
                return batch, False
            if pipe.empty():
                pause = self._written_at + _PACE - loop.time()
                if pause <= 0:
                    return batch, False
                try:
                    # Not `wait_for`, which up to Python 3.11 may drop a cancellation that comes with the answer.
                    async with asyncio.timeout(pause):
                        item = await pipe.get()
                except TimeoutError:
                    return batch, False
            else:
                item = pipe.get_nowait()

    async def _store(self, batch: Sequence[Output]) -> None:
        position = batch[-1].position
        pieces = _merged(batch)
        if _interleavings(pieces) > _INTERLEAVINGS:
            pieces = _merged(sorted(batch, key=lambda output: output.stream, reverse=True))
        chunks: list[LogChunk] = []
        sizes = dict(self.bytes)
        sequence = self._sequence
        truncated = False
        for stream, data in pieces:
            room = self._limit - sizes[Stream.STDOUT] - sizes[Stream.STDERR]
            if len(data) > room:
                data, truncated = data[:room], True
            if data:
                sequence += 1
                # Batches are stored whole, so reading only ever resumes behind the last chunk of one.
                chunks.append(
                    LogChunk(sequence=sequence, stream=stream, offset=sizes[stream], data=data, position=position)
                )
                sizes[stream] += len(data)
        if chunks:
            await self._storage.append_log(self._execution_id, chunks)
        self._sequence, self.bytes, self.position, self.truncated = sequence, sizes, position, truncated
        self._written_at = asyncio.get_running_loop().time()
        if chunks:
            await self._on_stored()


def _merged(batch: Sequence[Output]) -> list[tuple[Stream, bytes]]:
    """Neighbours of one stream joined, up to the size of a chunk."""
    pieces: list[tuple[Stream, list[bytes], int]] = []
    for output in batch:
        if pieces and pieces[-1][0] is output.stream and pieces[-1][2] + len(output.data) <= _CHUNK_BYTES:
            stream, parts, size = pieces[-1]
            parts.append(output.data)
            pieces[-1] = (stream, parts, size + len(output.data))
        else:
            pieces.append((output.stream, [output.data], len(output.data)))
    return [(stream, b"".join(parts)) for stream, parts, _ in pieces]


def _interleavings(pieces: Sequence[tuple[Stream, bytes]]) -> int:
    return sum(1 for one, two in itertools.pairwise(pieces) if one[0] is not two[0])


async def _pump(outputs: AsyncIterator[Output], pipe: asyncio.Queue[Output | BaseException | None]) -> None:
    try:
        async for output in outputs:
            await pipe.put(output)
    except Exception as error:
        await pipe.put(error)
    else:
        await pipe.put(None)
    finally:
        # Runners write `logs` as a generator, which holds a stream to the engine until it is closed.
        if isinstance(outputs, AsyncGenerator):
            await outputs.aclose()
