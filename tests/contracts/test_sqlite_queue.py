"""The queue suite over SQLite, with a clock that is moved by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fastlane_core.builtin.sqlite.queue import SqliteQueue
from fastlane_core.contracts.queue import AGEING_SECONDS, Queue
from fastlane_core.testing.examples import an_item
from fastlane_core.testing.queue_fixtures import Advance, BuildQueue, claim, ids
from fastlane_core.testing.queue_suite import QueueSuite


class HandClock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.time = 1_700_000_000.0

    def now(self) -> float:
        """The time it shows."""
        return self.time

    async def advance(self, seconds: float) -> None:
        """Move it on."""
        self.time += seconds


class TestSqliteQueue(QueueSuite):
    """Everything over one file, in one process."""

    @pytest.fixture
    def clock(self) -> HandClock:
        return HandClock()

    @pytest.fixture
    def build_queue(self, tmp_path: Path, clock: HandClock) -> BuildQueue:
        return lambda: SqliteQueue(tmp_path / "fastlane.db", clock=clock.now)

    @pytest.fixture
    def now(self, clock: HandClock) -> Callable[[], float]:
        return clock.now

    @pytest.fixture
    def advance(self, clock: HandClock) -> Advance:
        return clock.advance

    async def test_no_item_waits_for_ever_behind_higher_priorities(self, queue: Queue, clock: HandClock) -> None:
        await queue.put([an_item("old", priority=1)])
        await clock.advance(AGEING_SECONDS - 1.0)
        await queue.put([an_item("next step, too early", priority=2)])
        await clock.advance(2.0)
        await queue.put([an_item("next step", priority=2)])
        await clock.advance(8 * AGEING_SECONDS)
        await queue.put([an_item("highest", priority=9), an_item("lowest")])

        assert ids(await claim(queue)) == ["next step, too early", "old", "next step", "highest", "lowest"]

    async def test_waiting_counts_from_when_an_item_is_due(self, queue: Queue, clock: HandClock) -> None:
        later = clock.now() + 2 * AGEING_SECONDS
        await queue.put([an_item("scheduled", priority=1, due_at=later)])
        await clock.advance(2 * AGEING_SECONDS - 1.0)
        await queue.put([an_item("fresh", priority=1)])
        await clock.advance(2.0)

        assert ids(await claim(queue)) == ["fresh", "scheduled"]
