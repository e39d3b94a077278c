"""Finding tasks by the words of their ids."""

from __future__ import annotations

from collections.abc import Sequence

from fastlane_core.builtin.mongo.database import Collections
from fastlane_core.builtin.mongo.documents import Document, task_of, words
from fastlane_core.errors import InvalidInput
from fastlane_core.models import Task

#: Tasks that a search finds at most.
MAX_FOUND = 10_000
_MAX_WORDS = 32


async def search_tasks(db: Collections, query: str, *, start: int, limit: int) -> tuple[Sequence[Task], int]:
    """Tasks that have a word beginning with each word of `query`, oldest first, and their number. Raises InvalidInput.

    A query without words finds all.
    """
    given = words(query)
    # A word that begins another one is found with it.
    wanted = [word for word in given if not any(other != word and other.startswith(word) for other in given)]
    if len(wanted) > _MAX_WORDS:
        raise InvalidInput("query", f"expected at most {_MAX_WORDS} words, and these are {len(wanted)}")
    if wanted:
        # Words hold nothing that has a meaning in an expression; one that begins with ^ goes by the index.
        matches: Document = {"$and": [{"words": {"$regex": f"^{word}"}} for word in sorted(wanted)]}
        found = db.tasks.quick.find(matches, {"number": 1, "_id": 0}).limit(MAX_FOUND)
        numbers: Sequence[int] = sorted([each["number"] async for each in found])
    else:
        numbers = range(1, min(await count_tasks(db), MAX_FOUND) + 1)
    page = numbers[start : start + limit]
    if not page:
        return [], len(numbers)
    tasks = db.tasks.quick.find({"number": {"$in": list(page)}}).sort("number", 1)
    return [task_of(each) async for each in tasks], len(numbers)


async def count_tasks(db: Collections) -> int:
    """How many there are: tasks are numbered without gaps, and never removed."""
    last = await db.tasks.quick.find_one({}, {"number": 1}, sort=[("number", -1)])
    return 0 if last is None else int(last["number"])
