"""Tests of a storage's logs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from fastlane_core.contracts.storage import Storage
from fastlane_core.errors import LogConflict
from fastlane_core.models import Execution, Job, LogChunk, Stream
from fastlane_core.testing.examples import ODD_TEXTS, a_chunk, an_execution
from fastlane_core.testing.storage_fixtures import StorageFixtures, store_execution

_KIB = 1024


class StorageLogTests(StorageFixtures):
    """Logs: chunks in order, all or none, by stream and by size."""

    async def test_a_log_without_chunks_is_empty(self, storage: Storage, execution: Execution) -> None:
        for execution_id in (execution.id, "nobody"):
            assert list(await storage.read_log(execution_id, after=0, stream=None, max_bytes=100)) == []
            assert await storage.last_log(execution_id) == {}

    async def test_chunks_come_back_as_they_were(self, storage: Storage, execution: Execution) -> None:
        chunks = [
            a_chunk(1, bytes(range(256)), position="first"),
            a_chunk(2, b"\xff\xfe\x00", stream=Stream.STDERR, position="second"),
            a_chunk(3, b"no newline", offset=256, position="third"),
            a_chunk(4, b"", stream=Stream.STDERR, offset=2**40, position="fourth"),
        ]

        await storage.append_log(execution.id, chunks[:1])
        await storage.append_log(execution.id, chunks[1:])

        assert list(await read_all(storage, execution)) == chunks

    async def test_appending_nothing_is_no_error(self, storage: Storage, execution: Execution) -> None:
        await storage.append_log(execution.id, [])

        assert await storage.last_log(execution.id) == {}

    async def test_logs_of_executions_are_apart(self, storage: Storage, job: Job, execution: Execution) -> None:
        other = await store_execution(storage, an_execution(job))
        await storage.append_log(execution.id, [a_chunk(1, b"mine")])
        await storage.append_log(other.id, [a_chunk(1, b"other"), a_chunk(2, b"more")])

        assert [chunk.data for chunk in await read_all(storage, execution)] == [b"mine"]
        assert [chunk.data for chunk in await read_all(storage, other)] == [b"other", b"more"]

    @pytest.mark.parametrize("text", ODD_TEXTS)
    async def test_a_position_may_be_any_text(self, storage: Storage, execution: Execution, text: str) -> None:
        chunk = a_chunk(1, text.encode(), position=text)

        await storage.append_log(execution.id, [chunk])

        assert list(await read_all(storage, execution)) == [chunk]
        assert (await storage.last_log(execution.id))[Stream.STDOUT].position == text

    # Conflicts

    @pytest.mark.parametrize(
        "sequences",
        [[1], [2], [3], [5], [2, 3, 4], [3, 4], [4, 6], [4, 4], [5, 4], [0], [-1], [4, 5, 7]],
    )
    async def test_chunks_that_do_not_continue_the_log_are_refused_together(
        self, storage: Storage, execution: Execution, sequences: list[int]
    ) -> None:
        stored = [a_chunk(number, b"stored") for number in (1, 2, 3)]
        await storage.append_log(execution.id, stored)

        with pytest.raises(LogConflict) as refusal:
            await storage.append_log(execution.id, [a_chunk(number, b"refused") for number in sequences])

        assert refusal.value.next_sequence == 4
        assert list(await read_all(storage, execution)) == stored

    async def test_a_log_begins_with_chunk_one(self, storage: Storage, execution: Execution) -> None:
        for sequence in (0, 2):
            with pytest.raises(LogConflict) as refusal:
                await storage.append_log(execution.id, [a_chunk(sequence)])
            assert refusal.value.next_sequence == 1

    async def test_one_of_many_that_append_at_the_same_place_wins(
        self, storage: Storage, execution: Execution, clients: Sequence[Storage]
    ) -> None:
        async def append(number: int, client: Storage) -> bool:
            try:
                await client.append_log(execution.id, [a_chunk(1, b"%d" % number), a_chunk(2, b"%d" % number)])
            except LogConflict as conflict:
                assert conflict.next_sequence == 3
                return False
            return True

        won = await asyncio.gather(*(append(number, client) for number, client in enumerate(clients)))

        winner = b"%d" % won.index(True)
        assert won.count(True) == 1
        assert [chunk.data for chunk in await read_all(storage, execution)] == [winner, winner]

    async def test_writers_that_heed_the_conflict_leave_no_gap(
        self, storage: Storage, execution: Execution, clients: Sequence[Storage]
    ) -> None:
        async def append(client: Storage) -> None:
            sequence = 1
            while True:
                try:
                    await client.append_log(execution.id, [a_chunk(sequence)])
                except LogConflict as conflict:
                    sequence = conflict.next_sequence
                else:
                    return

        await asyncio.gather(*(append(client) for client in clients))

        sequences = [chunk.sequence for chunk in await read_all(storage, execution)]
        assert sequences == list(range(1, len(clients) + 1))

    # Reading

    async def test_reading_goes_on_after_a_sequence(self, storage: Storage, execution: Execution) -> None:
        await storage.append_log(execution.id, [a_chunk(number) for number in range(1, 6)])

        async def after(sequence: int) -> list[int]:
            chunks = await storage.read_log(execution.id, after=sequence, stream=None, max_bytes=100)
            return [chunk.sequence for chunk in chunks]

        assert await after(2) == [3, 4, 5]
        assert await after(5) == []
        assert await after(99) == []

    async def test_reading_picks_one_stream(self, storage: Storage, execution: Execution) -> None:
        streams = [Stream.STDOUT, Stream.STDERR, Stream.STDOUT, Stream.STDOUT, Stream.STDERR]
        await storage.append_log(execution.id, [a_chunk(n, stream=stream) for n, stream in enumerate(streams, 1)])

        async def sequences(stream: Stream | None, after: int) -> list[int]:
            chunks = await storage.read_log(execution.id, after=after, stream=stream, max_bytes=100)
            return [chunk.sequence for chunk in chunks]

        assert await sequences(None, 0) == [1, 2, 3, 4, 5]
        assert await sequences(Stream.STDOUT, 0) == [1, 3, 4]
        assert await sequences(Stream.STDERR, 0) == [2, 5]
        assert await sequences(Stream.STDERR, 2) == [5]
        assert await sequences(Stream.STDOUT, 4) == []

    async def test_reading_stops_before_it_exceeds_the_size(self, storage: Storage, execution: Execution) -> None:
        await storage.append_log(execution.id, [a_chunk(number, b"x" * 100) for number in range(1, 6)])

        async def count(max_bytes: int) -> int:
            return len(await storage.read_log(execution.id, after=0, stream=None, max_bytes=max_bytes))

        assert await count(300) == 3
        assert await count(399) == 3
        assert await count(100_000) == 5

    async def test_reading_gives_one_chunk_however_big(self, storage: Storage, execution: Execution) -> None:
        await storage.append_log(execution.id, [a_chunk(1, b"x" * 1000), a_chunk(2, b"y")])

        for max_bytes in (0, 1, 999):
            (chunk,) = await storage.read_log(execution.id, after=0, stream=None, max_bytes=max_bytes)
            assert chunk.data == b"x" * 1000

    async def test_the_last_chunks_are_told_without_their_data(self, storage: Storage, execution: Execution) -> None:
        chunks = [
            a_chunk(1, b"out", position="p1"),
            a_chunk(2, b"err", stream=Stream.STDERR, position="p2"),
            a_chunk(3, b"more", offset=3, position="p3"),
        ]
        await storage.append_log(execution.id, chunks[:1])
        assert await storage.last_log(execution.id) == {Stream.STDOUT: replace(chunks[0], data=b"")}

        await storage.append_log(execution.id, chunks[1:])

        assert await storage.last_log(execution.id) == {
            Stream.STDOUT: replace(chunks[2], data=b""),
            Stream.STDERR: replace(chunks[1], data=b""),
        }

    async def test_a_big_log_comes_back_byte_for_byte(self, storage: Storage, execution: Execution) -> None:
        piece = bytes(range(256)) * 4 * 256
        for first in range(1, 65, 4):
            await storage.append_log(
                execution.id,
                [a_chunk(n, n.to_bytes(2, "big") + piece, offset=n * len(piece)) for n in range(first, first + 4)],
            )

        chunks = await read_all(storage, execution, max_bytes=1024 * _KIB)

        assert [chunk.sequence for chunk in chunks] == list(range(1, 65))
        assert all(chunk.data == chunk.sequence.to_bytes(2, "big") + piece for chunk in chunks)

    async def test_a_log_of_many_tiny_chunks_is_read_to_its_end(self, storage: Storage, execution: Execution) -> None:
        for first in range(1, 10_001, 2_500):
            await storage.append_log(execution.id, [a_chunk(number) for number in range(first, first + 2_500)])
        await storage.append_log(execution.id, [a_chunk(10_001, b"err", stream=Stream.STDERR)])

        assert len(await read_all(storage, execution)) == 10_001
        (chunk,) = await storage.read_log(execution.id, after=0, stream=Stream.STDERR, max_bytes=100)
        assert chunk.sequence == 10_001


async def read_all(storage: Storage, execution: Execution, *, max_bytes: int = 1024 * _KIB) -> Sequence[LogChunk]:
    """The whole log, read as callers do: until nothing comes."""
    chunks: list[LogChunk] = []
    while True:
        after = chunks[-1].sequence if chunks else 0
        more = await storage.read_log(execution.id, after=after, stream=None, max_bytes=max_bytes)
        if not more:
            return chunks
        chunks += more
