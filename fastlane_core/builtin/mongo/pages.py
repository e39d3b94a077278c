"""Pages of lists that go from new to old, by time and then by key."""

from __future__ import annotations

from collections.abc import Sequence

from pymongo.asynchronous.cursor import AsyncCursor

from fastlane_core.builtin.mongo.documents import Document
from fastlane_core.builtin.mongo.keys import decode_timed_cursor, encode_cursor


def behind(time_field: str, cursor: str | None) -> Document:
    """The part of a filter that leaves out what comes before the cursor. Raises InvalidInput."""
    if cursor is None:
        return {}
    time, key = decode_timed_cursor(cursor)
    return {time_field: {"$lte": time}, "$or": [{time_field: {"$lt": time}}, {"_id": {"$lt": key}}]}


async def newest(found: AsyncCursor[Document], time_field: str, limit: int) -> Sequence[Document]:
    """A page, and one more where another page follows."""
    return await found.sort([(time_field, -1), ("_id", -1)]).limit(limit + 1).to_list()


def next_cursor(found: Sequence[Document], time_field: str, limit: int) -> str | None:
    """The cursor of the page that follows, from what `newest` gave."""
    if len(found) <= limit:
        return None
    last = found[limit - 1]
    return encode_cursor(float(last[time_field]), last["_id"])
