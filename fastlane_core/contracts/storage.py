"""The contract of a storage: the truth about tasks, jobs, executions, logs, and small state shared by plugins.

Every change of a record is a compare-and-set on that one record's `revision`, and what must happen together is in one
record, so that no store needs transactions. Pages go by cursor and are served by an index.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Generic, TypeVar

from fastlane_core.models import Execution, Job, JsonObject, LogChunk, Reason, Stream, Task
from fastlane_core.quick_dataclass import quick_dataclass

T = TypeVar("T")


@quick_dataclass(frozen=True, kw_only=True, slots=True)
class Page(Generic[T]):
    """Part of a longer list."""

    items: Sequence[T]
    #: Continues the list, or None at its end.
    cursor: str | None = None


@quick_dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """A job, and the execution that is to start for it now or later, accepted together."""

    #: Revision 0 adds it; a higher one replaces the stored job of that revision.
    job: Job
    execution: Execution | None


@quick_dataclass(frozen=True, kw_only=True, slots=True)
class Submitted:
    """What became of a submission."""

    job: Job
    execution: Execution | None
    #: Whether an earlier submission with the same idempotency key is given back instead.
    repeated: bool = False


@quick_dataclass(frozen=True, kw_only=True, slots=True)
class SharedValue:
    """A small value that plugins of all processes share."""

    value: JsonObject
    revision: int


@quick_dataclass(frozen=True, kw_only=True, slots=True)
class FailureFilter:
    """Which of the executions that failed for good; None does not matter."""

    task_id: str | None = None
    reasons: frozenset[Reason] | None = None
    #: When they ended: from, and before.
    since: float | None = None
    until: float | None = None
    #: What their message contains, without case.
    text: str | None = None

    def has(self, execution: Execution) -> bool:
        """Whether an execution that failed for good is one of them."""
        failed_at = ended_at(execution)
        return (
            (self.task_id is None or execution.task_id == self.task_id)
            and (self.reasons is None or execution.reason in self.reasons)
            and (self.since is None or failed_at >= self.since)
            and (self.until is None or failed_at < self.until)
            and (self.text is None or self.text.casefold() in (execution.message or "").casefold())
        )


def filtered_page(rows: Iterable[tuple[str, T]], wanted: Callable[[T], bool], *, limit: int, ends: bool) -> Page[T]:
    """The first `limit` wanted ones of a stretch of a list, each with the cursor behind it; for storages.

    `ends` tells that nothing follows the stretch.
    """
    items: list[T] = []
    last: str | None = None
    for cursor, item in rows:
        if len(items) == limit:
            return Page(items=items, cursor=last)
        if wanted(item):
            items.append(item)
        last = cursor
    return Page(items=items, cursor=None if ends else last)


def ended_at(execution: Execution) -> float:
    """When an execution that has ended did."""
    return execution.updated_at if execution.finished_at is None else execution.finished_at


class Storage(ABC):
    """Every method raises StorageUnavailable when the server cannot be reached in time.

    A write is durable when its method returns. Strings may hold any Unicode text, bytes anything. A cursor that it
    did not give raises InvalidInput.
    """

    @abstractmethod
    async def open(self) -> None:
        """Connect, and make or migrate the schema. Raises StorageUnavailable, SchemaTooNew."""

    async def open_to_look(self) -> None:
        """Open for a caller that only reads: no call changes anything, and this one makes and migrates nothing.

        Raises StorageUnavailable, SchemaTooNew, and SchemaNotReady where there is nothing yet, or something older.
        One that makes nothing when it is opened opens as ever.
        """
        await self.open()

    @abstractmethod
    async def close(self) -> None:
        """Let go of connections and threads."""

    @abstractmethod
    async def health(self) -> str:
        """Ask the server; a short description of it. Raises StorageUnavailable."""

    async def clock(self) -> float | None:
        """The server's clock, as Unix time in seconds; None if it has none of its own. Raises StorageUnavailable."""
        return None

    @abstractmethod
    async def submit(self, submissions: Sequence[Submission]) -> Sequence[Submitted]:
        """Store jobs with their executions, making or touching their tasks. One answer each, in order.

        A submission whose idempotency key is known in its task is not stored: the earlier one is given back, with
        the execution that was made with it. One that replaces a job only keeps the key that the job has.
        Raises RevisionConflict when a job exists (revision 0) or has changed; then none of the submissions is stored.
        """

    # Tasks

    @abstractmethod
    async def get_task(self, task_id: str) -> Task | None:
        """The task, or None."""

    @abstractmethod
    async def list_tasks(self, *, start: int, limit: int) -> Sequence[Task]:
        """Tasks in the order they were made, from the `start`-th (0-based); as fast for any `start`."""

    @abstractmethod
    async def search_tasks(self, query: str, *, start: int, limit: int) -> tuple[Sequence[Task], int]:
        """Tasks with a word of their id beginning with each word of `query`, and how many there are (at most 10,000).

        Words are runs of letters and digits, compared without case.
        """

    @abstractmethod
    async def count_tasks(self) -> int:
        """How many tasks there are; costs the same for any number."""

    @abstractmethod
    async def limit_task(self, task_id: str, concurrency: int | None, *, now: float) -> Task:
        """Store the task's `concurrency`, making the task if there is none, and return it."""

    @abstractmethod
    async def list_limited_tasks(self, *, cursor: str | None, limit: int) -> Page[Task]:
        """Tasks that have a `concurrency`, in the order they were made."""

    # Jobs

    @abstractmethod
    async def get_job(self, task_id: str, job_id: str) -> Job | None:
        """The job, or None. The same id may exist under two tasks."""

    @abstractmethod
    async def put_job(self, job: Job) -> Job:
        """Replace the stored job if its revision is `job.revision`; the new one. Raises RevisionConflict."""

    @abstractmethod
    async def put_jobs(self, jobs: Sequence[Job]) -> Sequence[Job | None]:
        """`put_job` of each, in few steps: the new ones in order, None for one whose revision was another."""

    @abstractmethod
    async def list_due_jobs(self, *, until: float, limit: int) -> Sequence[Job]:
        """Jobs with `due_at` at or before `until`, earliest first."""

    @abstractmethod
    async def next_due_job(self) -> float | None:
        """The earliest `due_at` of all jobs; None if none has one."""

    @abstractmethod
    async def list_scheduled_jobs(self, *, cursor: str | None, limit: int) -> Page[Job]:
        """Jobs that have a `due_at`, earliest first."""

    @abstractmethod
    async def count_scheduled_jobs(self) -> int:
        """How many jobs have a `due_at`, counted up to 10,000."""

    @abstractmethod
    async def list_jobs(self, task_id: str, *, cursor: str | None, limit: int) -> Page[Job]:
        """Jobs of a task, most recently modified first."""

    @abstractmethod
    async def count_jobs(self) -> int:
        """How many jobs there are; costs the same for any number."""

    # Executions

    @abstractmethod
    async def get_execution(self, execution_id: str) -> Execution | None:
        """The execution, or None."""

    @abstractmethod
    async def add_executions(self, executions: Sequence[Execution]) -> None:
        """Store new executions; one whose id is there already is left as it is."""

    @abstractmethod
    async def put_execution(self, execution: Execution) -> Execution:
        """Replace the stored execution if its revision is `execution.revision`; the new one.

        Raises RevisionConflict, also when there is none by that id.
        """

    @abstractmethod
    async def list_executions(self, job_id: str, *, task_id: str, cursor: str | None, limit: int) -> Page[Execution]:
        """Executions of a job, newest first."""

    @abstractmethod
    async def count_executions(self, job_id: str, *, task_id: str) -> int:
        """How many executions the job has; costs the same for any number."""

    @abstractmethod
    async def list_unfinished(self, *, cursor: str | None, limit: int) -> Page[Execution]:
        """Executions that have not ended, in a stable order."""

    @abstractmethod
    async def list_unfinished_of_job(
        self, job_id: str, *, task_id: str, cursor: str | None, limit: int
    ) -> Page[Execution]:
        """Executions of a job that have not ended, oldest first; as fast for any number that have."""

    @abstractmethod
    async def list_failures(self, wanted: FailureFilter, *, cursor: str | None, limit: int) -> Page[Execution]:
        """Executions with an open `failure`, latest end first.

        Looks at a bounded stretch: a page may hold fewer than `limit`, or none, and go on by its cursor.
        """

    @abstractmethod
    async def list_owing(self, *, until: float, limit: int) -> Sequence[Execution]:
        """Executions with `owes_at` at or before `until`, earliest first."""

    # Logs

    @abstractmethod
    async def append_log(self, execution_id: str, chunks: Sequence[LogChunk]) -> None:
        """Add chunks behind the last stored one. All or none: raises LogConflict unless they continue it."""

    @abstractmethod
    async def read_log(
        self, execution_id: str, *, after: int, stream: Stream | None, max_bytes: int
    ) -> Sequence[LogChunk]:
        """Chunks beyond sequence `after`, in order; stops before exceeding `max_bytes`, but gives at least one.

        `stream` picks one of the two. Empty at the end of what is stored.
        """

    @abstractmethod
    async def last_log(self, execution_id: str) -> Mapping[Stream, LogChunk]:
        """The last chunk of each stream, with its data. The higher sequence is the end of the log."""

    # Retention

    @abstractmethod
    async def remove_finished(self, *, before: float, limit: int) -> int:
        """Remove up to `limit` executions, with their logs, that ended before that time and owe nothing.

        Jobs stay. Returns how many were removed.
        """

    # Shared state

    @abstractmethod
    async def get_state(self, scope: str, key: str) -> SharedValue | None:
        """A value, or None."""

    @abstractmethod
    async def put_state(self, scope: str, key: str, value: JsonObject, *, revision: int | None) -> int:
        """Store a value and return its new revision.

        `revision` None overwrites, 0 only adds, any other must be the stored one. Raises RevisionConflict.
        """

    @abstractmethod
    async def list_state(self, scope: str) -> Mapping[str, SharedValue]:
        """All values of a scope: a handful (hosts, workers), never one per job."""

    @abstractmethod
    async def delete_state(self, scope: str, key: str) -> None:
        """Remove a value; no error if there is none."""
