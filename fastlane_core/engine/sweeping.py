"""Cleaning up the runs that engines still hold, and that nobody has anything to do with any more.

A loop of its own: stopping a run may take its grace, and an engine that hangs takes longer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container, Sequence

import structlog

from fastlane_core.contracts.runner import Runner
from fastlane_core.engine.context import WorkerContext
from fastlane_core.engine.lifecycle import given_up
from fastlane_core.engine.mending import note_mending
from fastlane_core.engine.misfits import Inspection, Misfit
from fastlane_core.errors import EngineUnavailable, QueueUnavailable, RunnerError, RunNotFound, StorageUnavailable
from fastlane_core.models import Event, EventKind

log = structlog.get_logger(__name__)

#: Leftovers of one place that are ended at a time: each may take its grace.
_CLEANED_AT_A_TIME = 16


class Sweeper:
    """Sweeps every place at intervals, and one that comes back at once; every clean-up is logged and counted."""

    def __init__(self, context: WorkerContext, in_hand: Container[str]) -> None:
        """`in_hand` has the ids of executions that this worker looks after."""
        self._context = context
        self._inspection = Inspection(context.storage, context.queue, context.routing, context.clock, in_hand=in_hand)
        self._returned: asyncio.Queue[tuple[str, str]] = asyncio.Queue()

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            try:
                await self.sweep()
            except (StorageUnavailable, QueueUnavailable) as error:
                log.warning("could not look for leftovers; trying again later", error=str(error))
            try:
                async with asyncio.timeout(self._context.options.reconcile_interval_seconds):
                    await self._sweep_what_returns()
            except TimeoutError:
                # Time for the next round.
                continue
            except (StorageUnavailable, QueueUnavailable) as error:
                log.warning("could not sweep a place that came back", error=str(error))

    def place_returned(self, lane: str, place: str) -> None:
        """A place can be reached again: runs that were given up as lost may be alive there, and it is swept at once."""
        if self._context.options.duties.monitor:
            self._returned.put_nowait((lane, place))

    async def sweep(self) -> None:
        """Sweep every place that can be reached, once. Raises StorageUnavailable."""
        for runner in self._context.routing.runners:
            for place in await self._places(runner):
                await self._try_to_sweep(runner, place)

    async def _sweep_what_returns(self) -> None:
        while True:
            lane, place = await self._returned.get()
            await self._try_to_sweep(self._context.routing.runner_of(lane), place)

    async def _places(self, runner: Runner) -> Sequence[str]:
        found: dict[str, None] = {}
        for lane in runner.lanes():
            # Also those that are offered to nothing new: what is left there runs beside what took its place.
            places = sorted((await runner.availability(lane.name)).reached)
            found.update(dict.fromkeys(self._context.trouble.usable(lane.name, places, now=self._context.clock())))
        return list(found)

    async def _try_to_sweep(self, runner: Runner, place: str) -> None:
        try:
            await self._sweep(runner, place)
        except RunnerError as error:
            log.info("could not look for leftovers", place=place, error=str(error))
        except (StorageUnavailable, QueueUnavailable):
            raise
        except Exception as error:
            # A runner that cannot cope with one place must not keep the others from being swept.
            log.exception("looking for leftovers crashed", place=place)
            self._report(error, place, f"looking for leftovers on {place}: {error!r}")

    async def _sweep(self, runner: Runner, place: str) -> None:
        """Clean up runs on `place` that no unfinished execution has there."""
        cleaning = asyncio.Semaphore(_CLEANED_AT_A_TIME)

        async def clean_up(misfit: Misfit) -> None:
            async with cleaning:
                if await self._try_to_clean_up(runner, place, misfit):
                    what = f"{misfit.message}; cleaned up"
                    note_mending(
                        self._context,
                        misfit.kind,
                        what,
                        execution_id=misfit.execution_id,
                        execution=misfit.execution,
                    )

        try:
            async with asyncio.TaskGroup() as tasks:
                async for misfit in self._inspection.leftovers(runner, place):
                    tasks.create_task(clean_up(misfit))
        except ExceptionGroup as errors:
            # The first tells as much as all of them.
            raise errors.exceptions[0] from None

    async def _try_to_clean_up(self, runner: Runner, place: str, misfit: Misfit) -> bool:
        """As `_clean_up`; what is wrong with one run is told, and keeps no other from being cleaned up."""
        try:
            return await self._clean_up(runner, misfit)
        except (EngineUnavailable, StorageUnavailable, QueueUnavailable):
            # Nor could the others be.
            raise
        except RunnerError as error:
            log.warning("a leftover cannot be cleaned up yet", execution=misfit.execution_id, error=str(error))
        except Exception as error:
            log.exception("cleaning a leftover up crashed", execution=misfit.execution_id, place=place)
            self._report(error, place, f"cleaning up {misfit.execution_id} on {place}: {error!r}")
        return False

    async def _clean_up(self, runner: Runner, misfit: Misfit) -> bool:
        """Whether there was something left to clean up. Raises EngineUnavailable."""
        run = misfit.run
        if run is None:
            return False
        try:
            if misfit.execution is not None and given_up(misfit.execution):
                await runner.discard(run.handle)
            else:
                if run.running:
                    await runner.stop(run.handle, self._context.options.stop_grace_seconds)
                await runner.finish(run.handle)
        except RunNotFound:
            return False
        return True

    def _report(self, error: Exception, place: str, message: str) -> None:
        context = self._context
        event = Event(
            kind=EventKind.LOOP_CRASHED, at=context.clock(), worker=context.worker, place=place, message=message
        )
        context.report(error, event)
