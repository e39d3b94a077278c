"""The queue suite over SQLite, with a clock that is moved by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fastlane_core.builtin.sqlite.queue import SqliteQueue
from fastlane_core.testing.queue_fixtures import Advance, BuildQueue
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
