"""The real API on a loopback port over real storage and queue, with records written as a worker would write them."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
from pydantic import BaseModel, ConfigDict
from quart import Blueprint

from fastlane_core.api import ApiContext, ApiLimits, create_api, serve
from fastlane_core.builtin.sqlite.queue import SqliteQueue
from fastlane_core.builtin.sqlite.storage import SqliteStorage
from fastlane_core.contracts.queue import Queue
from fastlane_core.contracts.runner import Capabilities, Lane, ProgressCallback, Runner
from fastlane_core.contracts.storage import Storage
from fastlane_core.engine.failures import Failures
from fastlane_core.engine.identifiers import new_id
from fastlane_core.engine.replacing import JobReplacement
from fastlane_core.engine.retrying import Retrying
from fastlane_core.engine.routing import Routing
from fastlane_core.engine.stopping import Stopping
from fastlane_core.engine.submission import JobOrder, JobSubmission
from fastlane_core.engine.task_limits import TaskLimits
from fastlane_core.engine.topics import execution_topic
from fastlane_core.errors import Unsupported
from fastlane_core.models import (
    Execution,
    LogChunk,
    Output,
    Reason,
    RunHandle,
    RunOutcome,
    RunRequest,
    RunSpec,
    Status,
    Stream,
)
from fastlane_core.settings import ApiSettings, GeneralSettings

#: Seconds after which something that should have happened counts as not happening.
DEADLINE = 20.0

LANE = "docker:main"


class DockerOptions(BaseModel):
    """Job options as a runner's plugin brings them."""

    model_config = ConfigDict(extra="forbid", strict=True)
    memory: str | None = None


class Lanes(Runner):
    """A runner as API processes have it: built for routing, never opened."""

    name = "docker"
    capabilities = Capabilities(detached=True)

    def lanes(self) -> Sequence[Lane]:
        return [Lane(name=LANE, capacity=2)]

    def lane_for(self, task_id: str) -> str | None:
        return None if task_id == "nowhere" else LANE

    def routing_help(self) -> str:
        return 'The docker farm takes every task but "nowhere".'

    async def prepare(self, request: RunRequest, progress: ProgressCallback) -> None:
        raise Unsupported("never opened")

    async def start(self, request: RunRequest) -> RunHandle:
        raise Unsupported("never opened")

    async def wait(self, handle: RunHandle) -> RunOutcome:
        raise Unsupported("never opened")

    async def stop(self, handle: RunHandle, grace: float) -> None:
        raise Unsupported("never opened")

    def logs(self, handle: RunHandle, *, after: str | None, follow: bool) -> AsyncIterator[Output]:
        raise Unsupported("never opened")

    async def finish(self, handle: RunHandle) -> None:
        raise Unsupported("never opened")

    def list_owned(self, place: str) -> AsyncIterator[object]:  # type: ignore[override]
        raise Unsupported("never opened")


@dataclass
class Api:
    """A running API and its back rooms."""

    url: str
    port: int
    context: ApiContext
    storage: Storage
    queue: Queue
    http: httpx.AsyncClient
    #: Ends the server, as a signal would.
    stop: asyncio.Event
    #: Set when the server has ended.
    served: asyncio.Task[None]

    async def submit(self, task: str = "t", **fields: object) -> Execution:
        """A job by the engine's own way in; its execution."""
        spec = RunSpec(image="busybox", command="echo hi", env={"A": "1", "DB_PASSWORD": "hunter2"}, timeout=60.0)
        order = JobOrder(task_id=task, spec=spec, request_ip="127.0.0.1")
        submitted = await self.context.submission.submit(replace(order, **fields))  # type: ignore[arg-type]
        await self.context.submission.settled()
        assert submitted.execution is not None
        return submitted.execution

    async def change(self, execution: Execution, **fields: object) -> Execution:
        """The record as a worker would write it."""
        current = await self.storage.get_execution(execution.id)
        assert current is not None
        changed = await self.storage.put_execution(replace(current, **fields))  # type: ignore[arg-type]
        await self.queue.publish(execution_topic(execution.id))
        return changed

    async def run(self, execution: Execution) -> Execution:
        """As if its container had started."""
        return await self.change(
            execution,
            status=Status.RUNNING,
            started_at=time.time(),
            place="engine-1.example:2375",
            handle=RunHandle(runner="docker", version=1, data={"container": "c0ffee"}),
        )

    async def end(self, execution: Execution, status: Status, exit_code: int | None, **fields: object) -> Execution:
        """As if its container had ended."""
        reason = Reason.SUCCEEDED if status is Status.DONE else Reason.EXIT_CODE
        return await self.change(
            execution,
            **{"status": status, "exit_code": exit_code, "reason": reason, "finished_at": time.time()} | fields,
        )

    async def write(self, execution: Execution, *outputs: tuple[Stream, bytes]) -> None:
        """As if it had written that."""
        last = await self.storage.last_log(execution.id)
        sequence = max((chunk.sequence for chunk in last.values()), default=0)
        offsets = {stream: chunk.offset + len(chunk.data) for stream, chunk in last.items()}
        chunks = []
        for stream, data in outputs:
            sequence += 1
            offset = offsets.get(stream, 0)
            chunks.append(LogChunk(sequence=sequence, stream=stream, offset=offset, data=data, position=str(sequence)))
            offsets[stream] = offset + len(data)
        await self.storage.append_log(execution.id, chunks)
        await self.queue.publish(execution_topic(execution.id))

    def at(self, execution: Execution, below: str = "") -> str:
        """The path of an execution, and what is below it."""
        return f"{self.job(execution)}executions/{execution.id}/{below}"

    def job(self, execution: Execution, below: str = "") -> str:
        """The path of its job, and what is below it."""
        return f"/tasks/{execution.task_id}/jobs/{execution.job_id}/{below}"


@asynccontextmanager
async def running_api(
    folder: Path,
    *,
    settings: ApiSettings | None = None,
    limits: ApiLimits | None = None,
    blueprints: Sequence[Blueprint] = (),
    queue: Queue | None = None,
) -> AsyncIterator[Api]:
    """Serve the API on a free port until the context ends."""
    storage, queue = SqliteStorage(folder / "storage.db"), queue or SqliteQueue(folder / "queue.db", clock=time.time)
    await storage.open()
    await queue.open()
    await queue.rebuilt()
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    port = int(listener.getsockname()[1])
    routing = Routing([Lanes()])
    submission, stopping = JobSubmission(storage, queue, routing, time.time), Stopping(storage, queue, time.time)
    context = ApiContext(
        storage=storage,
        queue=queue,
        routing=routing,
        submission=submission,
        task_limits=TaskLimits(storage, queue, time.time),
        stopping=stopping,
        replacement=JobReplacement(storage, queue, submission, stopping),
        retrying=Retrying(storage, queue, routing, stopping, time.time),
        failures=Failures(storage, queue, routing, time.time),
        general=GeneralSettings(),
        api=settings or ApiSettings(),
        hard_timeout=1800.0,
        version="1.2.3",
        host="127.0.0.1",
        port=port,
        clock=time.time,
        runner_options={"docker": DockerOptions},
        limits=limits or ApiLimits(),
    )
    stop = asyncio.Event()

    async def shutdown() -> None:
        await stop.wait()
        context.closing.set()

    served = asyncio.create_task(serve(create_api(context, blueprints), context, listener, shutdown))
    url = f"http://127.0.0.1:{port}"
    try:
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=DEADLINE) as http:
            await _until_served(port, served)
            yield Api(url, port, context, storage, queue, http, stop, served)
    finally:
        stop.set()
        await asyncio.wait_for(served, DEADLINE)
        await queue.close()
        await storage.close()


async def _until_served(port: int, served: asyncio.Task[None]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not served.done():
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                await asyncio.sleep(0.01)
            else:
                writer.close()
                await writer.wait_closed()
                return
    await served


def unknown() -> str:
    """An id that nothing has."""
    return new_id()
