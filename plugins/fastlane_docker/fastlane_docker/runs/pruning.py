"""Removing the containers of processed runs from one engine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from docker.errors import APIError, NotFound

from fastlane_core.contracts.runner import PrunedRun, PruneReport
from fastlane_core.errors import EngineUnavailable
from fastlane_docker.engines.client import Client
from fastlane_docker.engines.engine import Engine
from fastlane_docker.runs import containers
from fastlane_docker.runs.listing import CannotRemove, Listed, list_containers, remove

#: Removals under way at a time on one engine, so that its other calls find threads.
_AT_ONCE = 4


async def prune_engine(
    engine: Engine, deployment_id: str, *, older_than: float, dry_run: bool, now: float, seconds: float
) -> PruneReport:
    """Remove what was processed and had ended `older_than` seconds before `now`; with `dry_run` only tell.

    It ends after `seconds`, and at the first call that the engine does not answer within its time-out.
    """
    pruning = _Pruning(older_than=older_than, dry_run=dry_run, now=now)
    try:
        async with asyncio.timeout(seconds):
            await pruning.run(engine, deployment_id)
    except TimeoutError:
        pruning.errors.append(f"it was not done within {seconds:g} s; the next time goes on")
    except (EngineUnavailable, APIError) as error:
        pruning.errors.append(str(error))
    more = f" (and {len(pruning.errors) - 1} errors more)" if len(pruning.errors) > 1 else ""
    return PruneReport(place=engine.address.key, runs=pruning.runs, error="".join(pruning.errors[:1]) + more)


class _Pruning:
    """One pass over one engine."""

    def __init__(self, *, older_than: float, dry_run: bool, now: float) -> None:
        self._older_than = older_than
        self._dry_run = dry_run
        self._now = now
        self.runs: list[PrunedRun] = []
        self.errors: list[str] = []

    async def run(self, engine: Engine, deployment_id: str) -> None:
        """Raises EngineUnavailable and APIError where not even a list is to be had."""
        found = await engine.call(
            "list", lambda client: list_containers(client, deployment_id, containers.DEFUNCT_PREFIX)
        )
        # What was created later has ended later still.
        waiting = iter([each for each in found if self._is_old(each.created_at)])
        async with asyncio.TaskGroup() as group:
            for _ in range(_AT_ONCE):
                group.create_task(self._take(engine, waiting))

    async def _take(self, engine: Engine, waiting: Iterator[Listed]) -> None:
        """Remove what `waiting` gives to this and other tasks."""
        for each in waiting:
            try:
                await self._remove(engine, each)
            except CannotRemove as error:
                self.errors.append(f"{each.name} cannot be removed: {error}")
            except (EngineUnavailable, APIError) as error:
                self.errors.append(str(error))
                # The rest would fare no better.
                _ = list(waiting)

    async def _remove(self, engine: Engine, found: Listed) -> None:
        def remove_if_old(client: Client) -> bool:
            if self._older_than > 0 and not self._is_old(_ended_at(client, found)):
                return False
            return self._dry_run or remove(client, found.id)

        try:
            if not await engine.call("remove", remove_if_old):
                return
        except NotFound:
            return
        self.runs.append(
            PrunedRun(name=found.name, execution_id=found.execution_id, image=found.image, created_at=found.created_at)
        )

    def _is_old(self, time: float) -> bool:
        return self._now - time >= self._older_than


def _ended_at(client: Client, found: Listed) -> float:
    """When it ended, which the list does not tell; when it was created, if it never ran."""
    finished = containers.parse_time(str(containers.state_of(client, found.id)["FinishedAt"]))
    return found.created_at if finished is None else finished
