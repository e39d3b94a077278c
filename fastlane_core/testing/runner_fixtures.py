"""The fixtures of the runner suite."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio

from fastlane_core.contracts.runner import Runner
from fastlane_core.testing.runner_commands import ShellCommands
from fastlane_core.testing.runner_driver import DEADLINE, RunDriver

BuildRunner = Callable[[str], Runner]
MakeRunner = Callable[[], Awaitable[Runner]]


class RunnerFixtures:
    """Fixtures with their defaults; `RunnerSuite` tells which ones to give and to override."""

    @pytest.fixture
    def commands(self) -> ShellCommands:
        return ShellCommands()

    @pytest.fixture
    def image(self) -> str:
        return "busybox:latest"

    @pytest.fixture
    def missing_image(self) -> str | None:
        return None

    @pytest.fixture
    def deployment_id(self) -> str:
        return f"suite-{uuid.uuid4()}"

    @pytest_asyncio.fixture
    async def make_runner(self, build_runner: BuildRunner, deployment_id: str) -> AsyncIterator[MakeRunner]:
        """Makes an opened runner, as another worker would; all are closed in the end."""
        opened: list[Runner] = []

        async def make() -> Runner:
            runner = build_runner(deployment_id)
            await asyncio.wait_for(runner.open(), DEADLINE)
            opened.append(runner)
            return runner

        yield make
        for runner in opened:
            await asyncio.wait_for(runner.close(), DEADLINE)

    @pytest_asyncio.fixture
    async def runner(self, make_runner: MakeRunner) -> Runner:
        return await make_runner()

    @pytest_asyncio.fixture
    async def runs(self, make_runner: MakeRunner, deployment_id: str, image: str) -> AsyncIterator[RunDriver]:
        """Starts runs, and ends and finishes all of them when the test is over."""
        driver = RunDriver(deployment_id=deployment_id, image=image)
        yield driver
        await driver.clean(make_runner)
