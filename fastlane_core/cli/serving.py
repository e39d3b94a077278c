"""Running the API and workers in this process until a signal ends them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import structlog
from hypercorn.asyncio import serve

from fastlane_core.api import create_api, server_config
from fastlane_core.app import Application, open_application
from fastlane_core.errors import SettingsError

log = structlog.get_logger(__name__)


def run_until_signal(
    main: Callable[[Application, asyncio.Event], Awaitable[None]],
    *,
    config: Path | None,
    listen: tuple[str, int] | None = None,
) -> None:
    """Open the application, run `main` with an event that SIGTERM or SIGINT sets, and end the process.

    `listen` is the host and port that an API of this process will listen on. Raises SettingsError for an address that
    cannot be listened on, before anything is opened, and what `open_application` raises.
    """

    if listen is not None:
        check_address(*listen)

    async def running() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        async with open_application(config, os.environ, api_bind=listen[0] if listen else None) as application:
            await main(application, stop)

    asyncio.run(running())
    # A call to an engine that hangs in a thread would hold the process up; everything that matters is closed.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def check_address(host: str, port: int) -> None:
    """Raise SettingsError if nothing can listen on `host`:`port` now."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise SettingsError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; -b and -p choose another address"
        ) from error


async def serve_api(application: Application, host: str, port: int, stop: asyncio.Event) -> None:
    """Serve HTTP and WebSocket on `host`:`port` until `stop` is set. Raises OSError if the address is taken."""
    closing = asyncio.Event()
    context = application.api_context(host=host, port=port, closing=closing)
    api = create_api(context, application.blueprints)

    async def until_stopped() -> None:
        await stop.wait()
        # Streams end by themselves when they see this, before the server would cut them.
        closing.set()

    log.info("serving", url=f"http://{host}:{port}")
    await serve(api, server_config(context), shutdown_trigger=until_stopped)


async def first_to_end(stop: asyncio.Event, *parts: Awaitable[None]) -> None:
    """Run parts side by side; when one ends or fails, all are told to stop."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stop.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            with suppress(asyncio.CancelledError):
                raise result
