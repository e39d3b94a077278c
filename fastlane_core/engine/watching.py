"""Following one run on its engine: its end, its output and its stop, each for as long as the engine may come back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from fastlane_core.engine.absence import AbsenceNote, Outage
from fastlane_core.engine.capture import LogCapture
from fastlane_core.engine.context import WorkerContext
from fastlane_core.engine.records import Fenced
from fastlane_core.errors import EngineUnavailable, LogConflict, RunNotFound
from fastlane_core.models import Execution, Reason, RunHandle, RunOutcome

log = structlog.get_logger(__name__)

#: Seconds without a new byte after which the rest of the log of an ended run is given up while its engine answers.
_LOG_PATIENCE = 30.0


class RunWatch:
    """One run, by its handle."""

    def __init__(
        self,
        context: WorkerContext,
        execution: Execution,
        handle: RunHandle,
        *,
        trouble: Callable[[EngineUnavailable], None],
        crashed: Callable[[Exception], None],
    ) -> None:
        """`trouble` hears whenever the engine is out of reach, and `crashed` of errors that nobody foresaw."""
        self._context = context
        self._execution = execution
        self._handle = handle
        self._runner = context.routing.runner_for(execution)
        self._trouble = trouble
        self._crashed = crashed

    async def outcome(self, absence: AbsenceNote) -> RunOutcome:
        """How it ended, or that it is lost. `absence` is told while its engine is out of reach."""
        outage = Outage(self._context.options.engine_lost_after_seconds)
        while True:
            asked_at = self._context.clock()
            try:
                return await self._runner.wait(self._handle)
            except RunNotFound as error:
                return RunOutcome(exit_code=None, reason=Reason.RUN_LOST, message=str(error))
            except EngineUnavailable as error:
                now = self._context.clock()
                outage.goes_on(error, asked_at=asked_at, now=now)
                self._trouble(error)
                absence.engine_is_gone(str(error))
                if outage.is_lost(now):
                    message = f"Its engine was out of reach for {outage.lasts(now):.0f} s: {error}"
                    return RunOutcome(exit_code=None, reason=Reason.ENGINE_LOST, message=message)
                await self._pause(outage.failures)

    async def follow(self, capture: LogCapture, *, begun_before: bool) -> None:
        """Copy its output to the storage until it has ended and all is there. Raises Fenced, StorageUnavailable."""
        if begun_before:
            await capture.resume()
        failures = 0
        while True:
            try:
                await capture.copy(self._runner.logs(self._handle, after=capture.position, follow=True))
            except RunNotFound:
                return
            except LogConflict:
                # Written by a worker that had lost its lease: true bytes all the same. Go on behind them.
                await self._check_it_is_mine()
                await capture.resume()
            except EngineUnavailable as error:
                failures += 1
                self._trouble(error)
                await self._pause(failures)
            else:
                return

    async def drain(self, follower: asyncio.Task[None], capture: LogCapture) -> bool:
        """Wait for the rest of an ended run's log, as long as it may come; whether all of it came.

        An engine that is out of reach may bring it when it is back, and one call to it may hang for long.
        """
        patience = max(_LOG_PATIENCE, self._context.options.engine_lost_after_seconds)
        while not follower.done():
            seen = sum(capture.bytes.values())
            await asyncio.wait({follower}, timeout=patience)
            if not follower.done() and sum(capture.bytes.values()) == seen:
                log.warning("the rest of the log did not come; ended without it", seconds=patience)
                return False
        await follower
        return True

    async def stop(self, *, patience: float | None = None) -> None:
        """Return when it is dead. Tries again whatever goes wrong; with `patience`, for so many seconds.

        Raises what went wrong last once they are over.
        """
        failures = 0
        give_up_at = None if patience is None else self._context.clock() + patience
        while True:
            try:
                await self._runner.stop(self._handle, self._context.options.stop_grace_seconds)
                return
            except RunNotFound:
                return
            except EngineUnavailable as error:
                self._trouble(error)
                if _is_over(give_up_at, self._context.clock()):
                    raise
            except Exception as error:
                # Whoever wants it dead waits for its end, and would wait for ever.
                self._crashed(error)
                if _is_over(give_up_at, self._context.clock()):
                    raise
            failures += 1
            await self._pause(failures)

    async def _check_it_is_mine(self) -> None:
        stored = await self._context.storage.get_execution(self._execution.id)
        if stored is None or stored.fence != self._execution.fence:
            raise Fenced(f"execution {self._execution.id} was taken over")

    async def _pause(self, failures: int) -> None:
        await asyncio.sleep(self._context.options.trouble_backoff.delay(failures, floor=0.1))


def _is_over(at: float | None, now: float) -> bool:
    return at is not None and now > at
