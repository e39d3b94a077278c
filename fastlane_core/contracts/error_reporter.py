"""The contract of an error reporter: it takes unexpected errors to where people see them."""

from __future__ import annotations

from abc import ABC, abstractmethod

from fastlane_core.models import Event


class ErrorReporter(ABC):
    """Must not block and cannot fail a job: what it raises is logged and dropped."""

    #: The name that it is registered under.
    name: str

    async def open(self) -> None:  # noqa: B027
        """Called inside the running event loop, before anything is reported."""

    @abstractmethod
    def report(self, error: BaseException, event: Event) -> None:
        """Take an unexpected error, with the redacted circumstances in `event`. Returns at once."""

    async def close(self) -> None:  # noqa: B027
        """Send what is buffered, for at most two seconds."""
