"""Telling callers that the engine of what they run is out of reach, for as long as it is."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace

from fastlane_core.engine.context import WorkerContext
from fastlane_core.engine.records import Fenced, change_execution
from fastlane_core.errors import StorageUnavailable
from fastlane_core.models import Execution

#: Seconds between looks whether the engine is back, and without trouble before that is believed.
_LOOK_SECONDS, _QUIET_SECONDS = 1.0, 3.0


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
        return self._execution.place in (await runner.availability(self._execution.lane)).places

    async def _write(self, note: str | None) -> None:
        now = self._context.clock()

        def step(current: Execution) -> Execution:
            if current.status.is_final or current.waiting_for == note:
                return current
            return replace(current, waiting_for=note, updated_at=now)

        # The newest record is kept, as a step that changes nothing in an old one would write nothing.
        self._execution = await change_execution(
            self._context.storage, self._execution, step, fence=self._execution.fence
        )
