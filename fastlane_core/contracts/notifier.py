"""The contract of a notifier: it tells people and programs how an execution ended."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from fastlane_core.models import Delivery, Execution, Job, JsonObject


@dataclass(frozen=True, kw_only=True, slots=True)
class DeliveryResult:
    """How one try went."""

    delivered: bool
    #: What went wrong, for people; "" when delivered.
    error: str = ""
    #: Seconds until the next try; None gives up.
    retry_in: float | None = None


class Notifier(ABC):
    """Owns one field of the job payload, turns ended executions into deliveries, and makes them."""

    #: The name that it is registered under.
    name: str

    async def open(self) -> None:  # noqa: B027
        """Make ready to deliver; raises SettingsError for a set-up that can never work."""

    async def close(self) -> None:  # noqa: B027
        """Let go of connections."""

    @abstractmethod
    def deliveries(self, job: Job, execution: Execution) -> Sequence[Delivery]:
        """What is owed now that `execution` has its final status. Pure: written together with that status.

        Ids must be the same each time it is asked for the same execution.
        """

    @abstractmethod
    async def deliver(self, delivery: Delivery, body: JsonObject) -> DeliveryResult:
        """Make one delivery of `body`, the redacted result, within its own time-out. Expected failures are results."""
