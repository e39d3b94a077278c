"""What a runner is built with, made by hand for tests."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection
from typing import cast

from pydantic import BaseModel

from fastlane_core.contracts.storage import Storage
from fastlane_core.hookspecs import RunnerContext, Section
from fastlane_core.models import Event, RunRequest


class GivenSettings:
    """Settings that consist of these sections; one that was not given has its defaults."""

    def __init__(self, *sections: BaseModel) -> None:
        self._sections = sections

    def section(self, model: type[Section]) -> Section:
        """The section given for this model."""
        for section in self._sections:
            if isinstance(section, model):
                return section
        return model()


def runner_context(
    *sections: BaseModel,
    deployment_id: str,
    api_bind: str | None = None,
    clock: Callable[[], float] = time.time,
    storage: Storage | None = None,
    emit: Callable[[Event], None] = lambda event: None,
    confirm_start: Callable[[RunRequest], Awaitable[None]] | None = None,
    api_binds: Collection[str] = (),
    stop_grace_seconds: float = 10.0,
) -> RunnerContext:
    """A context with these settings. Leave `storage` out for a runner that keeps nothing there.

    Every start is confirmed unless `confirm_start` says otherwise.
    """

    async def listening() -> Collection[str]:
        return api_binds

    return RunnerContext(
        settings=GivenSettings(*sections),
        deployment_id=deployment_id,
        api_bind=api_bind,
        clock=clock,
        storage=storage if storage is not None else cast(Storage, None),
        emit=emit,
        confirm_start=confirm_start or _confirm,
        api_binds=listening,
        stop_grace_seconds=stop_grace_seconds,
    )


async def _confirm(request: RunRequest) -> None:
    """Every run may be started."""
