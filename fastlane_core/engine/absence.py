"""Engines that are out of reach: for how long they have been, and telling callers so."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from fastlane_core.engine.context import WorkerContext
from fastlane_core.engine.records import Fenced, change_execution
from fastlane_core.errors import EngineUnavailable, StorageUnavailable
from fastlane_core.models import Execution
from fastlane_core.quick_dataclass import replace

#: Seconds between looks whether the engine is back, and without trouble before that is believed.
_LOOK_SECONDS, _QUIET_SECONDS = 1.0, 3.0


class Outage:
    """How long an engine has been out of reach for one who asks it again and again. Times are passed in."""

    def __init__(self, lost_after: float) -> None:
        """`lost_after` is in seconds."""
        self._lost_after = lost_after
        self._since = 0.0
        #: In a row.
        self.failures = 0

    def goes_on(self, error: EngineUnavailable, *, asked_at: float, now: float) -> None:
        """It was out of reach once more, for a call that was made at `asked_at`."""
        had_answered = error.had_answered
        if had_answered is None:
            # A call that waits for nothing but an answer has a time-out, which is shorter than that.
            had_answered = now - asked_at > self._lost_after
        if self.failures == 0 or had_answered:
            self._since, self.failures = now, 0
        self.failures += 1

    def lasts(self, now: float) -> float:
        """Seconds since it went out of reach."""
        return now - self._since

    def is_lost(self, now: float) -> bool:
        """Whether that is longer than it is waited for."""
        return self.failures > 0 and self.lasts(now) > self._lost_after


class AbsenceNote:
    """Keeps `waiting_for` of one running execution true while its engine comes and goes."""

    def __init__(self, context: WorkerContext, execution: Execution) -> None:
        self._context = context
        self._execution = execution
        self._trouble_at = float("-inf")
        #: Writes the note and takes it back; None while there is no trouble. To be cancelled in the end.
        self.keeping: asyncio.Task[None] | None = None

    def engine_is_gone(self, why: str) -> None:
        """It could not be reached."""
        self._trouble_at = asyncio.get_running_loop().time()
        if self.keeping is None or self.keeping.done():
            self.keeping = asyncio.create_task(self._keep(f"its engine, which is out of reach: {why}"))

    async def _keep(self, note: str) -> None:
        # A note that cannot be written is not worth more trouble.
        with suppress(Fenced, StorageUnavailable):
            await self._write(note)
            is_back = False
            while not is_back:
                await asyncio.sleep(_LOOK_SECONDS)
                is_back = await self._is_back()
            await self._write(None)

    async def _is_back(self) -> bool:
        if asyncio.get_running_loop().time() - self._trouble_at < _QUIET_SECONDS:
            return False
        runner = self._context.routing.runner_for(self._execution)
        return self._execution.place in (await runner.availability(self._execution.lane)).reached

    async def _write(self, note: str | None) -> None:
        now = self._context.clock()

        def step(current: Execution) -> Execution:
            if current.status.is_final or current.waiting_for == note:
                return current
            return replace(current, waiting_for=note, updated_at=now)

        # The newest record is kept, as a step that changes nothing in an old one would write nothing.
        self._execution = await change_execution(self._context.storage, self._execution, step, fenced=True)
