"""How many executions of a task may hold a slot at a time, as callers say: kept by the storage, heeded by the queue."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import structlog

from fastlane_core.contracts.queue import Queue, task_key
from fastlane_core.contracts.storage import Storage
from fastlane_core.errors import QueueUnavailable
from fastlane_core.models import Task

log = structlog.get_logger(__name__)

#: Tasks looked at in one call, and limits of the queue that one comparison looks up in the storage.
_PAGE = 500
_LOOKED_UP = 500
_KEY_OF_TASK = task_key("")


class TaskLimits:
    """Sets limits of tasks, and brings the queue's up to date with the storage's."""

    def __init__(self, storage: Storage, queue: Queue, clock: Callable[[], float]) -> None:
        self._storage = storage
        self._queue = queue
        self._clock = clock
        self._cursor: str | None = None
        self._next_lookup = 0

    async def set(self, task_id: str, concurrency: int | None) -> Task:
        """Let so many executions of the task hold a slot at a time, None for any number. Raises StorageUnavailable.

        A queue that is down is no error: the reconciler tells it later.
        """
        task = await self._storage.limit_task(task_id, concurrency, now=self._clock())
        try:
            await self._queue.set_limit(task_key(task_id), concurrency)
        except QueueUnavailable as error:
            log.warning("the queue did not hear of a limit; it will be told later", task=task_id, error=str(error))
        return task

    async def ensure(self, task_id: str, concurrency: int) -> None:
        """`set`, unless it is so already. Raises StorageUnavailable."""
        task = await self._storage.get_task(task_id)
        if task is None or task.concurrency != concurrency:
            await self.set(task_id, concurrency)

    async def restore(self) -> None:
        """Tell a queue that has lost its data every limit. Raises StorageUnavailable, QueueUnavailable."""
        cursor: str | None = None
        while True:
            page = await self._storage.list_limited_tasks(cursor=cursor, limit=_PAGE)
            for task in page.items:
                await self._queue.set_limit(task_key(task.id), task.concurrency)
            cursor = page.cursor
            if cursor is None:
                return

    async def compare(self) -> None:
        """Mend what some of the queue's and of the storage's limits differ in, others each time.

        Raises StorageUnavailable, QueueUnavailable.
        """
        told = await self._queue.limits()
        page = await self._storage.list_limited_tasks(cursor=self._cursor, limit=_PAGE)
        self._cursor = page.cursor
        differing = [task.id for task in page.items if told.get(task_key(task.id)) != task.concurrency]
        names = sorted(key.removeprefix(_KEY_OF_TASK) for key in told if key.startswith(_KEY_OF_TASK))
        first = self._next_lookup if self._next_lookup < len(names) else 0
        self._next_lookup = first + _LOOKED_UP
        for task_id in dict.fromkeys([*differing, *names[first : self._next_lookup]]):
            await self._mend(task_id, told)

    async def _mend(self, task_id: str, told: Mapping[str, int]) -> None:
        # Read after the queue was: it is told last.
        task = await self._storage.get_task(task_id)
        wanted = None if task is None else task.concurrency
        if told.get(task_key(task_id)) != wanted:
            log.info("the queue did not have the limit of a task; told it", task=task_id, concurrency=wanted)
            await self._queue.set_limit(task_key(task_id), wanted)
