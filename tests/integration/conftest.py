"""What tests of several parts at work share: the event loop, a deployment with an engine in memory, an API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import pytest
import uvloop

from tests.integration.api_harness import Api, running_api
from tests.integration.engine_harness import Deployment, deployment


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Tests of the API and of workers have the loop of `fastlane dev`, which runs both; all others the standard one."""
    if item.path.name.startswith(("test_api_", "test_engine")):
        return {"uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}


@pytest.fixture
async def fastlane(tmp_path: Path) -> AsyncIterator[Deployment]:
    """Storage, queue and an engine in memory; workers are the test's to start."""
    async with deployment(tmp_path) as made:
        yield made


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    """A running API with the usual settings."""
    async with running_api(tmp_path) as running:
        yield running
