"""Workers over real SQLite and an engine in memory, in one process, driven by hand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastlane_core.builtin.sqlite.queue import SqliteQueue
from fastlane_core.builtin.sqlite.storage import SqliteStorage
from fastlane_core.contracts.queue import Lease, Queue
from fastlane_core.contracts.storage import Storage
from fastlane_core.engine.backoff import Backoff
from fastlane_core.engine.context import EngineOptions, WorkerContext
from fastlane_core.engine.faultpoints import FaultPoint
from fastlane_core.engine.routing import Routing, TaskLimit
from fastlane_core.engine.stopping import Stopping
from fastlane_core.engine.submission import JobOrder, JobSubmission
from fastlane_core.engine.supervision import Supervision
from fastlane_core.engine.worker import Worker
from fastlane_core.models import Event, Execution, RunSpec, Status, Stream
from fastlane_core.testing.fake_engine import FakeEngine
from fastlane_core.testing.fake_runner import FakeRunner

#: Reached only when something is broken.
PATIENCE = 30.0
QUICK = EngineOptions(
    lease_seconds=60.0,
    poll_seconds=0.05,
    stop_grace_seconds=0.2,
    reconcile_interval_seconds=0.1,
    retry_backoff=Backoff(first=0.01),
    trouble_backoff=Backoff(first=0.01, cap=0.05),
)


class MovedClock:
    """Real time that a test can move on."""

    def __init__(self) -> None:
        self._ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self._ahead

    def advance(self, seconds: float) -> None:
        """Let so much time have passed."""
        self._ahead += seconds


class Deployment:
    """One storage, one queue, one engine, and as many workers as a test likes."""

    def __init__(self, folder: Path, *, lanes: Mapping[str, int] | None = None, storage: Storage | None = None) -> None:
        self.folder = folder
        self.clock = MovedClock()
        self.engine = FakeEngine(places={"host": 50})
        self.storage = storage or SqliteStorage(folder / "storage.db")
        self.queue: Queue = SqliteQueue(folder / "queue.db", clock=self.clock)
        self.lanes = dict(lanes or {"fake:default": 50})
        self.task_limits: list[TaskLimit] = []
        self.events: list[Event] = []
        self.reports: list[BaseException] = []

    def routing(self) -> Routing:
        """Routing over a runner of its own, as every process has."""
        runner = FakeRunner(self.engine, deployment_id="test", lanes=self.lanes, route=self._route)
        return Routing([runner], self.task_limits)

    def _route(self, task_id: str) -> str | None:
        """A task that is named like a lane goes there, any other to the first."""
        return task_id if task_id in self.lanes else next(iter(self.lanes), None)

    def context(self, worker: str, options: EngineOptions = QUICK, **changes: Any) -> WorkerContext:
        """What a worker by that name works with."""
        context = WorkerContext(
            worker=worker,
            deployment_id="test",
            storage=self.storage,
            queue=self.queue,
            routing=self.routing(),
            options=options,
            clock=self.clock,
            emit=self.events.append,
            report=lambda error, event: self.reports.append(error),
        )
        return replace(context, **changes)

    @asynccontextmanager
    async def worker(
        self, name: str = "worker", options: EngineOptions = QUICK
    ) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        """A worker; what is given stops it as SIGTERM does, before the end of the block."""
        stop = asyncio.Event()
        task = asyncio.create_task(Worker(self.context(name, options)).run(stop))

        async def ended() -> None:
            stop.set()
            await asyncio.wait_for(task, PATIENCE)

        try:
            yield ended
        finally:
            if not task.done():
                await ended()
            await task

    async def submit(self, command: str, *, task: str = "test", **changes: Any) -> Execution:
        """Submit a job; its first execution."""
        spec = RunSpec(image=changes.pop("image", "image"), command=command, timeout=changes.pop("timeout", 600.0))
        submission = JobSubmission(self.storage, self.queue, self.routing(), self.clock)
        submitted = await submission.submit(JobOrder(task_id=task, spec=spec, **changes))
        await submission.settled()
        assert submitted.execution is not None
        return submitted.execution

    async def stop_job(self, execution: Execution) -> None:
        """Stop the execution's job, as the API does."""
        await Stopping(self.storage, self.queue, self.clock).stop_job(execution.task_id, execution.job_id)

    async def now(self, execution: Execution) -> Execution:
        """The execution as it is stored."""
        stored = await self.storage.get_execution(execution.id)
        assert stored is not None
        return stored

    async def ended(self, execution: Execution) -> Execution:
        """The execution, once it has ended."""
        await until(lambda: self._is(execution, lambda each: each.status.is_final))
        return await self.now(execution)

    async def ended_without_retry(self, execution: Execution) -> Execution:
        """The execution, ended by a worker that died before it made the attempt that follows."""
        died = asyncio.Event()

        def die(point: FaultPoint) -> None:
            if point is FaultPoint.RECORDED_ENDED:
                died.set()
                raise asyncio.CancelledError

        supervision = await self.claim("dead")
        dying = Supervision(self.context("dead", reach=die), supervision.lease)
        await asyncio.gather(dying.run(), return_exceptions=True)
        assert died.is_set()
        await self.queue.hand_over([supervision.lease])
        return await self.now(execution)

    async def running(self, execution: Execution) -> Execution:
        """The execution, once it runs."""
        await until(lambda: self._is(execution, lambda each: each.status is Status.RUNNING))
        return await self.now(execution)

    async def attempts(self, execution: Execution) -> list[Execution]:
        """All executions of the job, oldest first."""
        page = await self.storage.list_executions(execution.job_id, task_id=execution.task_id, cursor=None, limit=100)
        return list(reversed(page.items))

    async def output(self, execution: Execution, stream: Stream = Stream.STDOUT) -> bytes:
        """What is stored of a stream."""
        parts: list[bytes] = []
        after = 0
        while chunks := await self.storage.read_log(execution.id, after=after, stream=stream, max_bytes=1 << 20):
            parts += [chunk.data for chunk in chunks]
            after = chunks[-1].sequence
        return b"".join(parts)

    async def claim(self, name: str, options: EngineOptions = QUICK) -> Supervision:
        """Claim one execution by hand, with nobody to renew the lease: a worker that is paused right after."""
        await self.queue.rebuilt()
        claimed: list[Lease] = []
        for lane in self.lanes:
            claimed += await self.queue.claim(
                lane, worker=name, capacity=50, limit=1, lease_seconds=options.lease_seconds
            )
        assert len(claimed) == 1
        return Supervision(self.context(name, options), claimed[0])

    async def _is(self, execution: Execution, condition: Callable[[Execution], bool]) -> bool:
        return condition(await self.now(execution))


@asynccontextmanager
async def deployment(folder: Path, **options: Any) -> AsyncIterator[Deployment]:
    """A deployment, opened; unexpected errors in its workers fail the test."""
    async with opened(Deployment(folder, **options)) as made:
        yield made


@asynccontextmanager
async def opened(made: Deployment) -> AsyncIterator[Deployment]:
    """As `deployment`, for one that a test has made."""
    await made.storage.open()
    await made.queue.open()
    try:
        yield made
        assert made.reports == []
    finally:
        await made.queue.close()
        await made.storage.close()


async def until(condition: Callable[[], Awaitable[bool] | bool]) -> None:
    """Return when the condition holds."""
    async with asyncio.timeout(PATIENCE):
        while True:
            held = condition()
            if held if isinstance(held, bool) else await held:
                return
            await asyncio.sleep(0.01)
