"""Logs of executions, in chunks."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence

from fastlane_core.errors import LogConflict, NotFound
from fastlane_core.models import LogChunk, Stream

#: Chunks read in one go: many tiny ones must not grow an answer without bound.
_MAX_CHUNKS = 4_096
#: Chunks removed in one transaction.
REMOVED_AT_ONCE = 64

FIND_EXECUTION = "SELECT number FROM executions WHERE id = ?"
LAST_SEQUENCE = "SELECT max(sequence) FROM log_chunks WHERE execution = ?"
INSERT_CHUNK = "INSERT INTO log_chunks VALUES (NULL, ?, ?, ?, ?, ?, ?)"
_CHUNK = "SELECT sequence, stream, stream_offset, position, data FROM log_chunks "
READ_BOTH = _CHUNK + "WHERE execution = ? AND sequence > ? ORDER BY sequence LIMIT ?"
READ_STREAM = _CHUNK + "WHERE execution = ? AND stream = ? AND sequence > ? ORDER BY sequence LIMIT ?"
LAST_OF_STREAM = """
    SELECT sequence, stream, stream_offset, position, x'' FROM log_chunks
    WHERE execution = ? AND stream = ? ORDER BY sequence DESC LIMIT 1
"""
REMOVE_CHUNKS = """
    DELETE FROM log_chunks WHERE number IN (
        SELECT log_chunks.number FROM removed_logs CROSS JOIN log_chunks
            ON log_chunks.execution = removed_logs.execution
        LIMIT ?
    )
"""
FORGET_REMOVED = "DELETE FROM removed_logs"


def append_log(connection: sqlite3.Connection, execution_id: str, chunks: Sequence[LogChunk]) -> None:
    """Add chunks behind the last stored one. Raises NotFound, LogConflict."""
    execution = _find_execution(connection, execution_id)
    if execution is None:
        raise NotFound(f"the execution {execution_id} is not stored, so neither is its log")
    (last,) = connection.execute(LAST_SEQUENCE, (execution,)).fetchone()
    following = (last or 0) + 1
    if [chunk.sequence for chunk in chunks] != list(range(following, following + len(chunks))):
        raise LogConflict(execution_id, following)
    connection.executemany(
        INSERT_CHUNK,
        [(execution, chunk.sequence, chunk.stream.value, chunk.offset, chunk.position, chunk.data) for chunk in chunks],
    )


def read_log(
    connection: sqlite3.Connection, execution_id: str, after: int, stream: Stream | None, max_bytes: int
) -> Sequence[LogChunk]:
    """Chunks beyond `after` of at most `max_bytes`, but at least one."""
    execution = _find_execution(connection, execution_id)
    if execution is None:
        return ()
    if stream is None:
        rows = connection.execute(READ_BOTH, (execution, after, _MAX_CHUNKS))
    else:
        rows = connection.execute(READ_STREAM, (execution, stream.value, after, _MAX_CHUNKS))
    chunks: list[LogChunk] = []
    size = 0
    for row in rows:
        chunk = _chunk(row)
        size += len(chunk.data)
        if chunks and size > max_bytes:
            break
        chunks.append(chunk)
    rows.close()
    return chunks


def last_log(connection: sqlite3.Connection, execution_id: str) -> Mapping[Stream, LogChunk]:
    """The last chunk of each stream, without data."""
    execution = _find_execution(connection, execution_id)
    if execution is None:
        return {}
    rows = [connection.execute(LAST_OF_STREAM, (execution, stream.value)).fetchone() for stream in Stream]
    return {chunk.stream: chunk for chunk in (_chunk(row) for row in rows if row is not None)}


def remove_chunks(connection: sqlite3.Connection) -> bool:
    """Remove some chunks of removed executions; whether there may be more."""
    removed = connection.execute(REMOVE_CHUNKS, (REMOVED_AT_ONCE,)).rowcount
    if removed < REMOVED_AT_ONCE:
        connection.execute(FORGET_REMOVED)
        return False
    return True


def _find_execution(connection: sqlite3.Connection, execution_id: str) -> int | None:
    row = connection.execute(FIND_EXECUTION, (execution_id,)).fetchone()
    return None if row is None else int(row[0])


def _chunk(row: tuple[int, str, int, str, bytes]) -> LogChunk:
    sequence, stream, offset, position, data = row
    return LogChunk(sequence=sequence, stream=Stream(stream), offset=offset, position=position, data=data)
