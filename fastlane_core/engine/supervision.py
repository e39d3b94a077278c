"""One execution, from the claim to the acknowledgement: follow its run, time it out, stop it, record its end.

Every step can be repeated: a worker that adopts the execution, or this one after trouble with a server, begins again
at the top and finds in the record and on the engine what was done before.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

import structlog

from fastlane_core.contracts.queue import Lease
from fastlane_core.engine.absence import AbsenceNote
from fastlane_core.engine.attempts import add_next_attempt
from fastlane_core.engine.capture import LogCapture
from fastlane_core.engine.context import WorkerContext
from fastlane_core.engine.faultpoints import FaultPoint
from fastlane_core.engine.lifecycle import Ending, cut_short, ended, judged, taken_over, with_retry
from fastlane_core.engine.mending import note_mending
from fastlane_core.engine.records import Fenced, change_execution
from fastlane_core.engine.starting import PutBack, Starter
from fastlane_core.engine.topics import execution_topic
from fastlane_core.engine.watching import RunWatch
from fastlane_core.errors import (
    EngineUnavailable,
    LeaseLost,
    QueueUnavailable,
    StorageUnavailable,
)
from fastlane_core.models import (
    Event,
    EventKind,
    Execution,
    Job,
    Mending,
    Reason,
    RunHandle,
    RunOutcome,
    Status,
    Stream,
)
from fastlane_core.quick_dataclass import replace

log = structlog.get_logger(__name__)

#: Unexpected errors in a row after which an execution is given up, and seconds without one that end a row.
_CRASHES, _CALM_SECONDS = 3, 600.0
#: Seconds in which the engine of an adopted run can say that it had ended, before it is stopped.
_LATE_ADOPTION = 1.0
#: What is told of a run whose log did not come to its end.
_LOG_CUT_SHORT = "Its log stopped coming before its end: the end of its output may be missing."


class Supervision:
    """Looks after one leased execution until its end, or until the lease is lost."""

    def __init__(self, context: WorkerContext, lease: Lease) -> None:
        self._context = context
        self._storage = context.storage
        self._queue = context.queue
        self.lease = lease
        self._claimed_at = context.clock()
        self._execution_id = lease.item.execution_id
        #: Whether the lease was left to run out by whoever held it, and that has not been told.
        self._is_orphaned = lease.adopted and not lease.handed_over
        #: Set when somebody asked for the execution to end.
        self.stop_wanted = asyncio.Event()

    async def run(self) -> None:
        """Return when the execution is acknowledged, put back, or in another worker's hands."""
        structlog.contextvars.bind_contextvars(
            task=self.lease.item.task_id, execution=self._execution_id, lane=self.lease.item.lane
        )
        troubles = crashes = 0
        crashed_at = float("-inf")
        while True:
            try:
                await self._carry()
            except (PutBack, LeaseLost):
                return
            except Fenced as error:
                if not await self._holds_lease():
                    log.info("left to another worker", why=str(error))
                    return
            except (StorageUnavailable, QueueUnavailable) as error:
                troubles += 1
                log.warning("trouble with a server; going on in a moment", error=str(error))
                await asyncio.sleep(self._context.options.trouble_backoff.delay(troubles, floor=0.1))
            except Exception as error:
                now = self._context.clock()
                crashes = 1 if now - crashed_at > _CALM_SECONDS else crashes + 1
                crashed_at = now
                self._report(error)
                if crashes >= _CRASHES:
                    await self._give_up(error)
                    return
                await asyncio.sleep(self._context.options.trouble_backoff.delay(crashes, floor=0.1))
            else:
                return

    async def _carry(self) -> None:
        self._context.reach(FaultPoint.CLAIMED)
        execution = await self._storage.get_execution(self._execution_id)
        if execution is None:
            await self._queue.ack(self.lease)
            message = "the queue held it, but the storage does not know it; dropped"
            note_mending(self._context, Mending.UNKNOWN_IN_QUEUE, message, execution_id=self._execution_id)
            return
        structlog.contextvars.bind_contextvars(job=execution.job_id)
        if not execution.status.is_final:
            execution = await self._take_over(execution)
        self._note_orphaned(execution)
        begun_before = execution.handle is not None
        if not execution.status.is_final and not begun_before:
            execution = await self._start(execution)
        if not execution.status.is_final:
            execution = await self._watch(execution, begun_before=begun_before)
        await self._settle(execution)
        await self._queue.ack(self.lease)
        self._context.reach(FaultPoint.ACKNOWLEDGED)

    async def _take_over(self, execution: Execution) -> Execution:
        now = self._context.clock()
        if self._is_new(execution):
            # Stored with its place, one write less for most; if another lease is on record by then, that write fails.
            execution = taken_over(execution, worker=self._context.worker, lease_token=self.lease.token, now=now)
        elif execution.lease_token != self.lease.token:
            execution = await change_execution(
                self._storage,
                execution,
                lambda current: (
                    current
                    if current.status.is_final
                    else taken_over(current, worker=self._context.worker, lease_token=self.lease.token, now=now)
                ),
                fenced=False,
            )
            # A worker that was paused between claim and here may have raised the fence over its successor's.
            if now - self._claimed_at > self._context.options.lease_seconds / 3 and not await self._holds_lease():
                raise LeaseLost(f"the lease of execution {self._execution_id} ran out before its work began")
            if self.lease.adopted:
                log.info("adopted", status=execution.status, place=execution.place)
                self._context.emit(self._event(EventKind.EXECUTION_ADOPTED, execution))
        if execution.stop_requested_at is not None:
            self.stop_wanted.set()
        self._context.reach(FaultPoint.TAKEN_OVER)
        return execution

    def _is_new(self, execution: Execution) -> bool:
        """Whether nobody had it before, as far as lease and record tell."""
        return execution.lease_token is None and execution.place is None and not self.lease.adopted

    def _note_orphaned(self, execution: Execution) -> None:
        """Once, however often trouble has this begin anew."""
        if self._is_orphaned:
            self._is_orphaned = False
            message = "the lease on it ran out, as its worker had not renewed it; adopted"
            note_mending(
                self._context,
                Mending.LEASE_ORPHANED,
                message,
                execution_id=execution.id,
                execution=execution,
            )

    async def _start(self, execution: Execution) -> Execution:
        return await Starter(self._context, self.lease, self.stop_wanted, self._changed, self._end).start(execution)

    # While it runs

    async def _watch(self, execution: Execution, *, begun_before: bool) -> Execution:
        handle = execution.handle
        if handle is None or execution.started_at is None:
            raise RuntimeError(f"execution {execution.id} is {execution.status} without a run")
        limit = self._context.options.max_log_bytes
        capture = LogCapture(self._storage, execution.id, limit=limit, on_stored=self._log_stored)
        deadline = execution.started_at + self._timeout_of(execution)
        absence = AbsenceNote(self._context, execution)
        run = self._watch_of(execution, handle)
        waiter = asyncio.create_task(run.outcome(absence))
        follower = asyncio.create_task(run.follow(capture, begun_before=begun_before))
        stop_wanted = asyncio.create_task(self.stop_wanted.wait())
        stopper: asyncio.Task[None] | None = None
        try:
            if self.stop_wanted.is_set() or self._context.clock() >= deadline:
                # Adopted late: it may have ended by itself long ago, and its engine gets the time to say so.
                await _first_of(waiter, None, follower, timeout=_LATE_ADOPTION)
            else:
                await _first_of(waiter, stop_wanted, follower, timeout=deadline - self._context.clock())
            stopped = self.stop_wanted.is_set() and not waiter.done()
            timed_out = not self.stop_wanted.is_set() and not waiter.done()
            if stopped or timed_out:
                log.info("stopping", because="it was asked to" if stopped else "its time-out has passed")
                stopper = asyncio.create_task(run.stop())
                await _first_of(waiter, None, follower, timeout=None)
            outcome = waiter.result()
            self._context.reach(FaultPoint.RUN_ENDED)
            is_whole = _out_of_reach(outcome) or await run.drain(follower, capture)
        finally:
            await _cancelled(waiter, follower, stop_wanted, stopper, absence.keeping)
        self._context.reach(FaultPoint.LOG_COMPLETE)
        note = "" if is_whole else _LOG_CUT_SHORT
        return await self._end(execution, outcome, capture=capture, stopped=stopped, timed_out=timed_out, note=note)

    def _timeout_of(self, execution: Execution) -> float:
        """Seconds that its run may take: the settings may have become stricter since it was asked for."""
        return min(execution.spec.timeout, self._context.options.hard_timeout_seconds)

    def _watch_of(self, execution: Execution, handle: RunHandle) -> RunWatch:
        def trouble(error: EngineUnavailable) -> None:
            log.warning("its engine is out of reach", place=execution.place, error=str(error))
            self._context.emit(self._event(EventKind.ENGINE_TROUBLE, execution, message=str(error)))

        return RunWatch(self._context, execution, handle, trouble=trouble, crashed=self._report)

    async def _log_stored(self) -> None:
        await self._wake_readers()
        self._context.reach(FaultPoint.LOG_STORED)

    # Its end

    async def _end(
        self,
        execution: Execution,
        outcome: RunOutcome | Ending,
        *,
        capture: LogCapture | None = None,
        stopped: bool = False,
        timed_out: bool = False,
        note: str = "",
    ) -> Execution:
        """Write the one final status, with everything that follows from it; `note` is added to its message."""
        now = self._context.clock()

        def ending_of(current: Execution) -> Ending:
            if isinstance(outcome, Ending):
                return cut_short(current, outcome)
            timeout = self._timeout_of(current)
            return judged(current, outcome, timeout=timeout, stopped=stopped, timed_out=timed_out)

        job: Job | None = None
        if ending_of(execution).reason not in (Reason.SUCCEEDED, Reason.STOPPED):
            # Whether it is tried again. Asked to stop meanwhile, it is not; it never becomes another failure.
            job = await self._storage.get_job(execution.task_id, execution.job_id)

        def step(current: Execution) -> Execution:
            if current.status.is_final:
                return current
            ending = ending_of(current)
            final = ended(current, replace(ending, message=f"{ending.message or ''} {note}".strip() or None), now=now)
            if capture is not None:
                final = replace(
                    final,
                    stdout_bytes=capture.bytes[Stream.STDOUT],
                    stderr_bytes=capture.bytes[Stream.STDERR],
                    log_truncated=capture.truncated,
                )
            if job is not None:
                final = with_retry(final, job, self._context.options.retry_backoff, now=now)
            return final

        final = await change_execution(self._storage, execution, step, fenced=True)
        log.info("ended", status=final.status, reason=final.reason, exit_code=final.exit_code)
        await self._changed(final)
        self._context.reach(FaultPoint.RECORDED_ENDED)
        return final

    async def _settle(self, execution: Execution) -> None:
        """Do what an ended execution owes: its next attempt, and the clean-up of its run."""
        if execution.owes_at is not None:
            await add_next_attempt(self._context, execution)
            self._context.reach(FaultPoint.RETRY_ADDED)
        if execution.handle is not None and not _out_of_reach(execution):
            try:
                await self._context.routing.runner_for(execution).finish(execution.handle)
            except EngineUnavailable as error:
                # The reconciler finds the run when the engine is back.
                log.warning("the run could not be cleaned up yet", error=str(error))
        self._context.reach(FaultPoint.FINISHED)

    async def _give_up(self, error: Exception) -> None:
        ending = Ending(
            status=Status.FAILED,
            reason=Reason.INTERNAL_ERROR,
            message=f"Fastlane failed to look after it ({type(error).__name__}); the worker's log has the details.",
        )
        try:
            execution = await self._storage.get_execution(self._execution_id)
            if execution is not None:
                if execution.handle is not None:
                    await self._stop_for_good(execution, execution.handle)
                if not execution.status.is_final:
                    execution = await self._end(execution, ending)
                await self._settle(execution)
            await self._queue.ack(self.lease)
        except Exception:
            # Its lease runs out, and the next worker tries.
            log.exception("an execution could not even be given up")

    async def _stop_for_good(self, execution: Execution, handle: RunHandle) -> None:
        """Stop the run, or leave it to the reconciler, which finds it when its engine is back."""
        try:
            patience = self._context.options.engine_lost_after_seconds
            await self._watch_of(execution, handle).stop(patience=patience)
        except Exception as error:
            log.warning("the run of an execution that is given up could not be stopped", error=str(error))

    # Tidings

    async def _changed(self, execution: Execution) -> None:
        self._context.emit(self._event(EventKind.EXECUTION_CHANGED, execution))
        await self._wake_readers()

    async def _wake_readers(self) -> None:
        with suppress(QueueUnavailable):
            await self._queue.publish(execution_topic(self._execution_id))

    async def _holds_lease(self) -> bool:
        renewal = await self._queue.renew([self.lease], self._context.options.lease_seconds)
        return self._execution_id not in renewal.lost

    def _report(self, error: Exception) -> None:
        log.error("an execution's supervision crashed", exc_info=error)
        self._context.report(error, self._event(EventKind.LOOP_CRASHED, message=repr(error)))

    def _event(self, kind: EventKind, execution: Execution | None = None, message: str = "") -> Event:
        return Event(
            kind=kind,
            at=self._context.clock(),
            task_id=self.lease.item.task_id,
            job_id=execution.job_id if execution else None,
            execution_id=self._execution_id,
            lane=self.lease.item.lane,
            place=execution.place if execution else None,
            worker=self._context.worker,
            status=execution.status if execution else None,
            reason=execution.reason if execution else None,
            message=message or (execution.message or "" if execution else ""),
        )


def _out_of_reach(ended: RunOutcome | Execution) -> bool:
    """Whether its engine was given up as lost; one that came back and told of the end is there to be asked."""
    return ended.reason is Reason.ENGINE_LOST and ended.exit_code is None


async def _first_of(
    waiter: asyncio.Task[RunOutcome],
    stop_wanted: asyncio.Task[bool] | None,
    follower: asyncio.Task[None],
    *,
    timeout: float | None,
) -> None:
    """Return when the run has ended, a stop is wanted, or time is up; raise what the follower raises."""
    loop = asyncio.get_running_loop()
    until = None if timeout is None else loop.time() + max(0.0, timeout)
    while True:
        wanted = [task for task in (waiter, stop_wanted, follower) if task is not None]
        if follower.done():
            await follower
            wanted.remove(follower)
        left = None if until is None else until - loop.time()
        done, _ = await asyncio.wait(wanted, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if not done or waiter in done or stop_wanted in done:
            return


async def _cancelled(*tasks: asyncio.Task[RunOutcome] | asyncio.Task[bool] | asyncio.Task[None] | None) -> None:
    """End helper tasks; what they raise has been seen or does not matter any more."""
    running = [task for task in tasks if task is not None]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
