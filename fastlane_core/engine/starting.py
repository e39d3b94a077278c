"""The way of an execution from its claim to a running run: place, prepare, start."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import AsyncGenerator, Awaitable, Callable

import structlog

from fastlane_core.contracts.queue import Lease
from fastlane_core.contracts.runner import Runner
from fastlane_core.engine.context import WorkerContext
from fastlane_core.engine.faultpoints import FaultPoint
from fastlane_core.engine.lifecycle import (
    STOPPED_BEFORE_START,
    Ending,
    before_start,
    follows_request,
    outdated,
    placed,
    pull_deadline,
    pull_timed_out,
    put_back,
    start_asked,
    started,
    waited_too_long,
)
from fastlane_core.engine.preparing import prepare
from fastlane_core.engine.records import StopWanted, change_execution
from fastlane_core.errors import EngineUnavailable, FastlaneError, ImageNotFound, PullFailed, StartLost, StartRejected
from fastlane_core.models import (
    Event,
    EventKind,
    Execution,
    Progress,
    Reason,
    RunHandle,
    RunRequest,
    Status,
)
from fastlane_core.quick_dataclass import replace

log = structlog.get_logger(__name__)

#: Seconds after which an execution for which no place had room is looked at again.
_NO_ROOM_DELAY = 0.5
#: Seconds after which it is looked at again whether what was stopped for an execution has ended.
_NOT_ENDED_DELAY = 0.5
#: Others of its job that are looked at.
_OTHERS = 100


class PutBack(FastlaneError):
    """The execution waits in the queue again."""


class Starter:
    """Starts one leased execution that has no run yet, as far as its record tells."""

    def __init__(
        self,
        context: WorkerContext,
        lease: Lease,
        stop_wanted: asyncio.Event,
        changed: Callable[[Execution], Awaitable[None]],
        end: Callable[[Execution, Ending], Awaitable[Execution]],
    ) -> None:
        self._context = context
        self._lease = lease
        self._stop_wanted = stop_wanted
        self._changed = changed
        self._end = end

    async def start(self, execution: Execution) -> Execution:
        """The execution, running or ended. Raises PutBack, Fenced, StorageUnavailable, QueueUnavailable."""
        if execution.start_asked_at is None and (ending := await self._why_not(execution)) is not None:
            return await self._end(execution, ending)
        if execution.takes_over and execution.place is None and await self._others_are_stopping(execution):
            await self._put_back(execution, "the end of what was stopped for it", _NOT_ENDED_DELAY)
        begun_before = execution.start_asked_at is not None
        try:
            execution = await self._place(execution)
            if execution.status.is_final:
                return execution
            request = self._request(execution, may_exist=begun_before)
            if execution.start_asked_at is None:
                await self._prepare(execution, request)
                await self._check_place(execution)
                execution = await self._ask_start(execution)
                if execution.status.is_final:
                    return execution
            handle = await self._start(execution, request)
        except ImageNotFound as error:
            return await self._end(execution, _failure(Reason.IMAGE_NOT_FOUND, error))
        except PullFailed as error:
            return await self._end(execution, _failure(Reason.PULL_FAILED, error))
        except StartRejected as error:
            return await self._end(execution, _failure(Reason.START_REJECTED, error))
        except _EngineLost as error:
            return await self._end(execution, _failure(Reason.ENGINE_LOST, error))
        except _TooLate as late:
            return await self._end(execution, late.ending)
        self._context.trouble.worked(execution.lane, request.place)
        self._context.reach(FaultPoint.STARTED)
        now = self._context.clock()
        execution = await self._change(execution, lambda current: started(current, handle=handle, now=now))
        log.info("running", place=execution.place)
        self._context.reach(FaultPoint.RECORDED_RUNNING)
        return execution

    async def _why_not(self, execution: Execution) -> Ending | None:
        """Why it must not be started any more, if so."""
        now = self._context.clock()
        ending = before_start(execution, now=now) or waited_too_long(execution, now=now)
        if ending is not None or not follows_request(execution):
            # One that was made with its job is told itself when the job is stopped or replaced.
            return ending
        job = await self._context.storage.get_job(execution.task_id, execution.job_id)
        return None if job is None else outdated(execution, job)

    async def _others_are_stopping(self, execution: Execution) -> bool:
        """Whether its job has others that were asked to stop and have not ended."""
        page = await self._context.storage.list_unfinished_of_job(
            execution.job_id, task_id=execution.task_id, cursor=None, limit=_OTHERS
        )
        return any(each.id != execution.id and each.stop_requested_at is not None for each in page.items)

    async def _place(self, execution: Execution) -> Execution:
        if execution.place is not None:
            # Begun by another worker, or by this one before trouble: a run may be there, or its image in part.
            await self._context.queue.assign(self._lease, [(execution.place, 1 << 30)])
            if execution.start_asked_at is None:
                await self._check_place(execution)
            return execution
        place = await self._choose_place(execution)
        now = self._context.clock()
        if place is None:
            await self._put_back(execution, "every place of its lane that could be reached is full", _NO_ROOM_DELAY)

        def step(current: Execution) -> Execution:
            there = placed(current, place=place or "", now=now)
            ready = self._context.routing.runner_for(there).is_prepared(self._request(there, may_exist=False))
            # Both at once, where nothing comes between them: one write less for most executions.
            return start_asked(there, now=now) if ready and before_start(there, now=now) is None else there

        execution = await self._change(execution, step)
        self._context.reach(FaultPoint.PLACED)
        if execution.start_asked_at is not None:
            self._context.reach(FaultPoint.START_ASKED)
        return execution

    async def _choose_place(self, execution: Execution) -> str | None:
        lane = execution.lane
        runner = self._context.routing.runner_for(execution)
        places = (await runner.availability(lane)).places
        usable = set(self._context.trouble.usable(lane, places, now=self._context.clock()))
        async with self._context.placing[lane]:
            loads = await self._context.queue.loads(lane)
            ranked = await runner.rank(lane, execution.spec.image, loads)
            return await self._context.queue.assign(
                self._lease, [(place, places[place]) for place in ranked if place in usable]
            )

    async def _check_place(self, execution: Execution) -> None:
        """Have another place chosen, while nothing can have been started, if its own takes nothing new any more."""
        place = execution.place or ""
        if self._context.routing.lane(execution.lane) is None:
            await self._put_back(execution, "another lane, as no runner offers its own any more", 0.0)
        if not await self._context.routing.runner_for(execution).is_offered(execution.lane, place):
            await self._put_back(execution, f"another place, as {place} takes nothing new any more", 0.0)

    async def _prepare(self, execution: Execution, request: RunRequest) -> None:
        async def note(message: str) -> None:
            await self._say_why(execution, message)

        deadline = pull_deadline(execution)
        left = None if deadline is None else deadline - self._context.clock()
        try:
            async with asyncio.timeout(left) as limit:
                await prepare(
                    self._context.routing.runner_for(execution),
                    request,
                    stop_wanted=self._stop_wanted,
                    progressed=self._progress(execution),
                    note=note,
                )
        except TimeoutError:
            if not limit.expired():
                raise
            raise _TooLate(pull_timed_out(execution)) from None
        except EngineUnavailable as error:
            delay = self._unreachable(execution, error)
            await self._put_back(execution, f"its engine, which is out of reach: {error}", delay)
        self._context.reach(FaultPoint.PREPARED)

    async def _ask_start(self, execution: Execution) -> Execution:
        now = self._context.clock()

        def step(current: Execution) -> Execution:
            ending = before_start(current, now=now)
            if ending is not None:
                raise _TooLate(ending)
            return start_asked(current, now=now)

        execution = await self._change(execution, step)
        self._context.reach(FaultPoint.START_ASKED)
        return execution

    async def _start(self, execution: Execution, request: RunRequest) -> RunHandle:
        """Ask until the engine answers: it may have started the run and only its answer was lost.

        Once a stop is wanted, nothing is started any more, and only what may be there is looked for.
        """
        runner = self._context.routing.runner_for(execution)
        asked_at = execution.start_asked_at or self._context.clock()
        failures = 0
        while True:
            try:
                if self._stop_wanted.is_set() and not await self._is_there(runner, request):
                    # An earlier call that is late finds the stop, or the end, on record before it starts anything.
                    raise _TooLate(STOPPED_BEFORE_START)
                return await runner.start(request)
            except StopWanted as error:
                raise _TooLate(STOPPED_BEFORE_START) from error
            except StartLost as error:
                raise _EngineLost(str(error)) from error
            except EngineUnavailable as error:
                failures += 1
                request = replace(request, may_exist=True)
                self._unreachable(execution, error)
                now = self._context.clock()
                if now - asked_at > self._context.options.engine_lost_after_seconds:
                    raise _EngineLost(f"Its engine was out of reach for {now - asked_at:.0f} s: {error}") from error
                if failures == 1:
                    execution = await self._say_why(execution, f"its engine, which is out of reach: {error}")
                await asyncio.sleep(self._context.options.trouble_backoff.delay(failures, floor=0.1))

    async def _is_there(self, runner: Runner, request: RunRequest) -> bool:
        """Whether its place has a run of it. Raises EngineUnavailable."""
        owned = runner.list_owned(request.place)
        try:
            async for run in owned:
                if run.execution_id == request.execution_id:
                    return True
            return False
        finally:
            if isinstance(owned, AsyncGenerator):
                await owned.aclose()

    async def _say_why(self, execution: Execution, why: str) -> Execution:
        now = self._context.clock()
        return await self._change(execution, lambda current: replace(current, waiting_for=why, updated_at=now))

    async def _put_back(self, execution: Execution, why: str, delay: float) -> None:
        now = self._context.clock()

        def step(current: Execution) -> Execution:
            if current.stop_requested_at is not None:
                # In a lane whose places stay out of reach nobody would come to it again.
                raise _TooLate(STOPPED_BEFORE_START)
            return put_back(current, why=why, now=now)

        await self._change(execution, step)
        await self._context.queue.release(self._lease, delay=delay)
        raise PutBack(why)

    async def _change(self, execution: Execution, step: Callable[[Execution], Execution]) -> Execution:
        """Apply a step of this worker's, unless the execution has ended meanwhile."""
        changed = await change_execution(
            self._context.storage,
            execution,
            lambda current: current if current.status.is_final else step(current),
            fenced=True,
        )
        await self._changed(changed)
        return changed

    def _request(self, execution: Execution, *, may_exist: bool) -> RunRequest:
        return RunRequest(
            execution_id=execution.id,
            job_id=execution.job_id,
            task_id=execution.task_id,
            spec=execution.spec,
            argv=tuple(shlex.split(execution.spec.command)),
            lane=execution.lane,
            place=execution.place or "",
            fence=execution.fence,
            deployment_id=self._context.deployment_id,
            max_log_bytes=self._context.options.max_log_bytes,
            may_exist=may_exist,
        )

    def _unreachable(self, execution: Execution, error: EngineUnavailable) -> float:
        """Leave the place alone for a while; returns for how many seconds."""
        place = execution.place or ""
        log.warning("its engine is out of reach", place=place, error=str(error))
        self._context.emit(self._event(execution, EventKind.ENGINE_TROUBLE, str(error)))
        return self._context.trouble.failed(execution.lane, place, str(error), now=self._context.clock())

    def _progress(self, execution: Execution) -> Callable[[Progress], None]:
        def tell(progress: Progress) -> None:
            self._context.emit(self._event(execution, EventKind.EXECUTION_PROGRESS, progress.message))

        return tell

    def _event(self, execution: Execution, kind: EventKind, message: str) -> Event:
        return Event(
            kind=kind,
            at=self._context.clock(),
            task_id=execution.task_id,
            job_id=execution.job_id,
            execution_id=execution.id,
            lane=execution.lane,
            place=execution.place,
            worker=self._context.worker,
            status=execution.status,
            message=message,
        )


class _TooLate(FastlaneError):
    """It must not be started any more."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.message)
        self.ending = ending


class _EngineLost(FastlaneError):
    """The engine was out of reach for longer than the settings allow."""


def _failure(reason: Reason, error: FastlaneError) -> Ending:
    return Ending(status=Status.FAILED, reason=reason, message=str(error))
