"""Finding tasks by the words of their ids."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence

from fastlane_core.errors import InvalidInput

#: Tasks that a search finds at most.
MAX_FOUND = 10_000
_MAX_WORDS = 32

_word = re.compile(r"[^\W_]+")
#: Sorts behind every word with the same beginning: it is no letter and the last of all characters.
_LAST = "\U0010ffff"

INSERT_WORD = "INSERT INTO task_words VALUES (?, ?) ON CONFLICT DO NOTHING"
COUNT_WORD = "SELECT count(*) FROM (SELECT 1 FROM task_words WHERE word >= ? AND word < ? LIMIT ?)"
FIND_WORD = "SELECT found.task FROM task_words AS found WHERE found.word >= ? AND found.word < ?"
_AND_WORD = " AND EXISTS (SELECT 1 FROM task_words WHERE task = found.task AND word >= ? AND word < ?)"
FIND_TWO_WORDS = FIND_WORD + _AND_WORD


def words(text: str) -> frozenset[str]:
    """Runs of letters and digits, without case."""
    return frozenset(_word.findall(text.casefold()))


def index_task(connection: sqlite3.Connection, number: int, task_id: str) -> None:
    """Make a new task findable."""
    connection.executemany(INSERT_WORD, [(word, number) for word in words(task_id)])


def find_tasks(connection: sqlite3.Connection, query: str) -> Sequence[int] | None:
    """Numbers of the tasks that have a word beginning with each word of `query`; None for a query without words.

    Goes through the rarest word's tasks, so its cost is bounded by them. Raises InvalidInput.
    """
    given = words(query)
    # A word that begins another one is found with it.
    wanted = [word for word in given if not any(other != word and other.startswith(word) for other in given)]
    if not wanted:
        return None
    if len(wanted) > _MAX_WORDS:
        raise InvalidInput("query", f"expected at most {_MAX_WORDS} words, and these are {len(wanted)}")
    counted = []
    for word in wanted:
        (count,) = connection.execute(COUNT_WORD, (word, word + _LAST, MAX_FOUND)).fetchone()
        counted.append((count, word))
    bounds = [bound for _, word in sorted(counted) for bound in (word, word + _LAST)]
    found: set[int] = set()
    rows = connection.execute(FIND_WORD + _AND_WORD * (len(wanted) - 1), bounds)
    for (number,) in rows:
        found.add(number)
        if len(found) == MAX_FOUND:
            break
    rows.close()
    return sorted(found)
