"""An execution that two workers take for new: one was held up before it wrote that it had it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fastlane_core.contracts.queue import Lease
from fastlane_core.engine.supervision import Supervision
from fastlane_core.models import Execution, Status
from fastlane_core.testing.fake_runner import FakeEngine
from tests.integration.engine_harness import Deployment

LANE = "fake:default"


class HeldUp:
    """A queue whose worker is held up as it is told where a run may be placed."""

    def __init__(self, queue: Any) -> None:
        self._queue = queue
        self.is_held = asyncio.Event()
        self.goes_on = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._queue, name)

    async def assign(self, lease: Lease, offers: Sequence[tuple[str, int]]) -> str | None:
        place = await self._queue.assign(lease, offers)
        self.is_held.set()
        await self.goes_on.wait()
        return place


@pytest.mark.parametrize("status", [Status.PULLING, Status.RUNNING])
async def test_who_was_held_up_before_its_first_write_leaves_the_execution_to_who_took_it_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: Status
) -> None:
    fastlane = Deployment(tmp_path)
    fastlane.engine = FakeEngine(places={"a": 50, "b": 50})
    await fastlane.storage.open()
    await fastlane.queue.open()
    await fastlane.queue.rebuilt()
    execution = await fastlane.submit("sleep 100")
    held_up = HeldUp(fastlane.queue)

    async def lease_of(worker: str) -> Lease:
        (lease,) = await fastlane.queue.claim(LANE, worker=worker, capacity=50, limit=1, lease_seconds=60.0)
        return lease

    async def has_it(worker: str) -> Execution:
        while True:
            found = await fastlane.now(execution)
            if found.worker == worker and found.status is status and found.start_asked_at is not None:
                return found
            await asyncio.sleep(0.02)

    first = asyncio.create_task(Supervision(fastlane.context("first", queue=held_up), await lease_of("first")).run())
    await held_up.is_held.wait()
    fastlane.clock.advance(100.0)
    context = fastlane.context("second")
    if status is Status.PULLING:
        # It has asked its engine, which does not answer.
        monkeypatch.setattr(context.routing.runner_of(LANE), "start", lambda request: asyncio.sleep(3600))
    second = asyncio.create_task(Supervision(context, await lease_of("second")).run())
    before = await asyncio.wait_for(has_it("second"), 30.0)

    held_up.goes_on.set()
    await asyncio.wait_for(first, 30.0)

    after = await fastlane.now(execution)
    assert (after.worker, after.place, after.status, after.fence) == ("second", before.place, status, 1)
    assert after.lease_token == before.lease_token
    assert not fastlane.reports
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    await fastlane.queue.close()
    await fastlane.storage.close()
