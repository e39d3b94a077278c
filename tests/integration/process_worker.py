"""Workers of the process runner in processes of their own, to be killed by the tests."""

from __future__ import annotations

import asyncio
from multiprocessing.connection import Connection

from fastlane_core.builtin.process.runner import ProcessRunner
from fastlane_core.builtin.process.settings import ProcessSettings
from fastlane_core.models import RunRequest
from fastlane_core.testing.runner_context import runner_context


def new_runner(folder: str, deployment_id: str) -> ProcessRunner:
    """A runner over this folder."""
    return ProcessRunner(runner_context(ProcessSettings(process_folder=folder), deployment_id=deployment_id))


def start_when_told(folder: str, request: RunRequest, told: Connection) -> None:
    """Open a runner, say so, start the request when told, say so, and stay until killed."""
    asyncio.run(_start_when_told(folder, request, told))


async def _start_when_told(folder: str, request: RunRequest, told: Connection) -> None:
    runner = new_runner(folder, request.deployment_id)
    await runner.open()
    told.send("ready")
    told.recv()
    await runner.start(request)
    told.send("started")
    told.recv()
