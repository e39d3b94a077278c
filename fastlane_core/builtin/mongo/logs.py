"""Logs of executions: what is appended together is one document, so that it is there whole or not at all.

It is known by the execution and the number of its first chunk, so of several writers at the same place one wins. What
is more than a little goes into parts in a collection of their own, which are written before: parts that no document
names are never read, and go with their execution.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

from bson import ObjectId
from pymongo.errors import DuplicateKeyError

from fastlane_core.builtin.mongo.database import Collections
from fastlane_core.builtin.mongo.documents import Document
from fastlane_core.builtin.mongo.keys import escape
from fastlane_core.builtin.mongo.settling import new_token
from fastlane_core.errors import LogConflict, NotFound
from fastlane_core.models import LogChunk, Stream

#: Data that needs no parts, and data and chunks of one part.
_LITTLE = 32 * 1024
_PART_BYTES = 1024 * 1024
_PART_CHUNKS = 4_096
#: Chunks read in one go: many tiny ones must not grow an answer without bound.
_MAX_CHUNKS = 4_096
#: Documents that the server sends at a time.
_READ_AT_ONCE = 64


async def append_log(db: Collections, execution_id: str, chunks: Sequence[LogChunk]) -> None:
    """Add chunks behind the last stored one. Raises NotFound, LogConflict."""
    execution = await _number(db, execution_id)
    if execution is None:
        raise NotFound(f"the execution {execution_id} is not stored, so neither is its log")
    following = await _last(db, execution) + 1
    if [chunk.sequence for chunk in chunks] != list(range(following, following + len(chunks))):
        raise LogConflict(execution_id, following)
    if not chunks:
        return
    document: Document = {
        "_id": f"{execution}/{following}",
        "execution": execution,
        "last": chunks[-1].sequence,
        "parts": [],
        **{chunk.stream.value: chunk.sequence for chunk in chunks},
    }
    if sum(len(chunk.data) for chunk in chunks) <= _LITTLE and len(chunks) <= _PART_CHUNKS:
        document |= _content(chunks)
    else:
        for some in _split(chunks):
            part = {"_id": new_token(), "execution": execution, **_content(some)}
            await db.log_parts.quick.insert_one(part)
            document["parts"].append(part["_id"])
    try:
        await db.logs.durable.insert_one(document)
    except DuplicateKeyError:
        raise LogConflict(execution_id, await _last(db, execution) + 1) from None


async def read_log(
    db: Collections, execution_id: str, after: int, stream: Stream | None, max_bytes: int
) -> Sequence[LogChunk]:
    """Chunks beyond `after` of at most `max_bytes`, but at least one."""
    execution = await _number(db, execution_id)
    if execution is None:
        return ()
    found: list[LogChunk] = []
    size = 0
    async for chunk in _chunks_after(db, execution, after, stream):
        size += len(chunk.data)
        if found and (size > max_bytes or len(found) == _MAX_CHUNKS):
            break
        found.append(chunk)
    return found


async def last_log(db: Collections, execution_id: str) -> Mapping[Stream, LogChunk]:
    """The last chunk of each stream, without data."""
    execution = await _number(db, execution_id)
    if execution is None:
        return {}
    found: dict[Stream, LogChunk] = {}
    for stream in Stream:
        document = await db.logs.quick.find_one(
            {"execution": execution, stream.value: {"$gt": 0}}, {"data": 0}, sort=[(stream.value, -1)]
        )
        if document is None:
            continue
        async for content in _contents(db, document, {"data": 0}):
            for chunk in _chunks({**content, "data": b""}):
                if chunk.stream is stream:
                    found[stream] = chunk
    return found


async def _chunks_after(
    db: Collections, execution: ObjectId, after: int, stream: Stream | None
) -> AsyncIterator[LogChunk]:
    by = "last" if stream is None else stream.value
    documents = db.logs.quick.find({"execution": execution, by: {"$gt": after}}, batch_size=_READ_AT_ONCE).sort(by, 1)
    async with documents:
        async for document in documents:
            async for content in _contents(db, document):
                for chunk in _chunks(content):
                    if chunk.sequence > after and stream in (None, chunk.stream):
                        yield chunk


async def _contents(
    db: Collections, document: Document, projection: Mapping[str, int] | None = None
) -> AsyncIterator[Document]:
    """What holds the chunks of a document: itself, or its parts in order."""
    if not document["parts"]:
        yield document
    for each in document["parts"]:
        part = await db.log_parts.quick.find_one({"_id": each}, projection)
        if part is None:
            # Removed while it is read.
            return
        yield part


async def _number(db: Collections, execution_id: str) -> ObjectId | None:
    found = await db.executions.quick.find_one({"_id": escape(execution_id)}, {"number": 1})
    return None if found is None else found["number"]


async def _last(db: Collections, execution: ObjectId) -> int:
    found = await db.logs.quick.find_one({"execution": execution, "last": {"$gt": 0}}, {"last": 1}, sort=[("last", -1)])
    return 0 if found is None else int(found["last"])


def _split(chunks: Sequence[LogChunk]) -> Iterator[Sequence[LogChunk]]:
    part: list[LogChunk] = []
    size = 0
    for chunk in chunks:
        if part and (size + len(chunk.data) > _PART_BYTES or len(part) == _PART_CHUNKS):
            yield part
            part, size = [], 0
        part.append(chunk)
        size += len(chunk.data)
    yield part


def _content(chunks: Sequence[LogChunk]) -> Document:
    """Chunks as one piece of data, with what cuts it."""
    return {
        "first": chunks[0].sequence,
        "chunks": json.dumps([[each.stream.value, each.offset, each.position, len(each.data)] for each in chunks]),
        "data": b"".join(each.data for each in chunks),
    }


def _chunks(document: Document) -> Iterator[LogChunk]:
    start = 0
    for index, (stream, offset, position, size) in enumerate(json.loads(document["chunks"])):
        yield LogChunk(
            sequence=document["first"] + index,
            stream=Stream(stream),
            offset=offset,
            data=document["data"][start : start + size],
            position=position,
        )
        start += size
