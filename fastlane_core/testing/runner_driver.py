"""What the runner suite drives runs with: makes requests, reads logs, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import shlex
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from fastlane_core.contracts.runner import OwnedRun, Runner
from fastlane_core.models import JsonObject, Output, Progress, RunHandle, RunOutcome, RunRequest, RunSpec, Stream

T = TypeVar("T")

#: Seconds within which anything must have happened; generous, since it is only met when something is broken.
DEADLINE = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """What a run wrote, by stream."""

    stdout: bytes
    stderr: bytes

    @classmethod
    def of(cls, outputs: Sequence[Output]) -> Written:
        """The chunks joined."""
        return cls(
            stdout=b"".join(each.data for each in outputs if each.stream is Stream.STDOUT),
            stderr=b"".join(each.data for each in outputs if each.stream is Stream.STDERR),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class StartedRun:
    """A run together with what it was started with."""

    runner: Runner
    request: RunRequest
    handle: RunHandle

    async def wait(self, *, by: Runner | None = None) -> RunOutcome:
        """How it ended."""
        return await asyncio.wait_for((by or self.runner).wait(self.handle), DEADLINE)

    async def stop(self, grace: float, *, by: Runner | None = None) -> None:
        """Stop it."""
        await asyncio.wait_for((by or self.runner).stop(self.handle, grace), DEADLINE + grace)

    async def logs(self, *, after: str | None = None, follow: bool = True, by: Runner | None = None) -> list[Output]:
        """All chunks to the end."""
        return await asyncio.wait_for(
            _collect((by or self.runner).logs(self.handle, after=after, follow=follow)), DEADLINE
        )

    async def written(self, *, after: str | None = None, follow: bool = True, by: Runner | None = None) -> Written:
        """All output to the end."""
        return Written.of(await self.logs(after=after, follow=follow, by=by))

    async def logs_until(self, enough: Callable[[Sequence[Output]], bool]) -> list[Output]:
        """Follow the log until `enough` of it is there."""
        seen: list[Output] = []

        async def read() -> None:
            outputs = self.runner.logs(self.handle, after=None, follow=True)
            try:
                async for output in outputs:
                    seen.append(output)
                    if enough(seen):
                        return
            finally:
                if isinstance(outputs, AsyncGenerator):
                    await outputs.aclose()

        await asyncio.wait_for(read(), DEADLINE)
        return seen

    async def until_ready(self) -> None:
        """Wait for the line `ready`."""
        await self.logs_until(lambda outputs: b"ready\n" in Written.of(outputs).stdout)


class RunDriver:
    """Starts runs and, at the end, stops and finishes all of them."""

    def __init__(self, *, deployment_id: str, image: str) -> None:
        self.deployment_id = deployment_id
        self.image = image
        self._started: list[StartedRun] = []

    async def request(
        self,
        runner: Runner,
        command: str,
        *,
        image: str | None = None,
        env: Mapping[str, str] | None = None,
        options: Mapping[str, JsonObject] | None = None,
        fence: int = 1,
    ) -> RunRequest:
        """A request for a new run on the best place of the runner's lane."""
        lane = runner.lane_for("suite")
        assert lane is not None, "the runner under test must have a lane for the task `suite`"
        image = image or self.image
        places = await runner.rank(lane, image, {})
        assert places, f"no place of {lane} is available: {(await runner.availability(lane)).reason}"
        return RunRequest(
            execution_id=str(uuid.uuid4()),
            job_id=str(uuid.uuid4()),
            task_id="suite",
            spec=RunSpec(image=image, command=command, env=env or {}, options=options or {}, timeout=600),
            argv=tuple(shlex.split(command)),
            lane=lane,
            place=places[0],
            fence=fence,
            deployment_id=self.deployment_id,
            max_log_bytes=64 * 1024 * 1024,
        )

    async def start_request(self, runner: Runner, request: RunRequest) -> StartedRun:
        """Prepare and start this very request."""
        await asyncio.wait_for(runner.prepare(request, ignore_progress), DEADLINE)
        handle = await asyncio.wait_for(runner.start(request), DEADLINE)
        run = StartedRun(runner=runner, request=request, handle=handle)
        self._started.append(run)
        return run

    async def start(
        self,
        runner: Runner,
        command: str,
        *,
        env: Mapping[str, str] | None = None,
        options: Mapping[str, JsonObject] | None = None,
        fence: int = 1,
    ) -> StartedRun:
        """Start a new run."""
        return await self.start_request(
            runner, await self.request(runner, command, env=env, options=options, fence=fence)
        )

    async def owned(self, runner: Runner, place: str) -> dict[str, OwnedRun]:
        """What the runner lists on a place, by execution id; fails when it lists one twice."""
        owned = await asyncio.wait_for(_collect(runner.list_owned(place)), DEADLINE)
        by_id = {each.execution_id: each for each in owned}
        assert len(by_id) == len(owned), f"an execution has more than one run: {owned}"
        return by_id

    @classmethod
    @asynccontextmanager
    async def of(cls, runner: Runner, *, deployment_id: str, image: str = "") -> AsyncGenerator[RunDriver]:
        """A driver for one runner, which cleans up by the same one at the end."""

        async def same() -> Runner:
            return runner

        driver = cls(deployment_id=deployment_id, image=image)
        yield driver
        await driver.clean(same)

    async def clean(self, new_runner: Callable[[], Awaitable[Runner]]) -> None:
        """End and finish every run, by a fresh runner."""
        if not self._started:
            return
        runner = await new_runner()
        for place in sorted({each.request.place for each in self._started}):
            for owned in (await self.owned(runner, place)).values():
                if owned.running:
                    await runner.stop(owned.handle, 0)
                await runner.finish(owned.handle)


def ignore_progress(progress: Progress) -> None:
    """A listener for `prepare` that does not listen."""


def through_json(handle: RunHandle) -> RunHandle:
    """The handle as another worker reads it from storage."""
    return RunHandle(runner=handle.runner, version=handle.version, data=json.loads(json.dumps(handle.data)))


async def _collect(items: AsyncIterator[T]) -> list[T]:
    return [item async for item in items]
