"""The contract of a metrics sink: it counts what happens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from fastlane_core.contracts.queue import LaneStats
from fastlane_core.models import Event


class MetricsSink(ABC):
    """Must not block and cannot fail a job: what it raises is logged and dropped. Label values must be bounded."""

    #: The name that it is registered under.
    name: str

    async def open(self) -> None:  # noqa: B027
        """Make ready."""

    @abstractmethod
    def record(self, event: Event) -> None:
        """Take one event. Returns at once."""

    @abstractmethod
    def observe_lanes(self, stats: Mapping[str, LaneStats]) -> None:
        """Take the queue's counts, every few seconds. Returns at once."""

    async def close(self) -> None:  # noqa: B027
        """Send what is buffered, for at most two seconds."""
