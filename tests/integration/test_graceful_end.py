"""What an API owes when it is told to end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest

from fastlane_core.app import open_application
from fastlane_core.cli import serving
from fastlane_core.contracts.queue import QueueItem
from fastlane_core.engine.presence import Presence
from tests.integration.api_harness import DEADLINE


async def test_what_was_accepted_is_in_the_queue_when_the_api_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "fastlane.conf"
    config.write_text(f"RUNNERS = ['process']\nSQLITE_PATH = {str(tmp_path / 'fastlane.db')!r}\n")
    stop, ready, last_step = asyncio.Event(), asyncio.Event(), asyncio.Event()
    queued: list[str] = []
    monkeypatch.setattr(serving, "_GOODBYE_SECONDS", DEADLINE)
    monkeypatch.setattr(serving, "_spare_collector", lambda: None)
    async with asyncio.timeout(DEADLINE), open_application(config, {}) as application:
        put, leave = application.queue.put, Presence.leave

        async def put_late(items: Sequence[QueueItem]) -> None:
            await last_step.wait()
            await put(items)
            queued.extend(each.execution_id for each in items)

        async def leave_first(presence: Presence) -> None:
            await leave(presence)
            last_step.set()

        monkeypatch.setattr(application.queue, "put", put_late)
        monkeypatch.setattr(Presence, "leave", leave_first)
        listener = serving.bind_listener("127.0.0.1", 0)
        serves = asyncio.create_task(serving.serve_api(application, "127.0.0.1", listener, stop, ready=ready.set))
        await ready.wait()
        async with httpx.AsyncClient() as http:
            url = f"http://127.0.0.1:{serving.real_port(listener)}/tasks/t/"
            answer = await http.post(url, json={"image": "busybox", "command": "true"})
        assert answer.status_code == 200, answer.text

        stop.set()
        await serves

        assert queued == [answer.json()["executionId"]]
