"""The event loop that a test of several parts at work has."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Tests of the API and of workers have the loop of `fastlane dev`, which runs both; all others the standard one."""
    if item.path.name.startswith(("test_api_", "test_engine")):
        return {"uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}
