"""Running the API and workers in this process until a signal ends them."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path

import structlog
import uvloop

from fastlane_core.api import create_api, serve
from fastlane_core.app import Application, open_application
from fastlane_core.errors import SettingsError, StorageUnavailable

log = structlog.get_logger(__name__)

#: Objects made and not freed until Python looks for cycles among them.
_COLLECTED_AFTER = 2_000
#: Seconds in which the other processes are told that this one ends; then they find out.
_GOODBYE_SECONDS = 2.0


def run_until_signal(
    main: Callable[[Application, asyncio.Event], Awaitable[None]],
    *,
    config: Path | None,
    api_bind: str | None = None,
    overrides: Mapping[str, object] | None = None,
    works: bool = True,
) -> None:
    """Open the application, run `main` with an event that SIGTERM or SIGINT sets, and end the process.

    `api_bind` is the address that an API of this process listens on, `overrides` what the command line says of
    settings, by key; `works` tells whether jobs are run here. Raises what `open_application` raises.
    """

    async def running() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        async with open_application(config, os.environ, api_bind=api_bind, overrides=overrides) as application:
            await main(application, stop)

    # With uvloop a worker takes a tenth less CPU time for a job; an API alone is not faster, but a little slower.
    run = uvloop.run if works else asyncio.run
    run(running())
    # A call to an engine that hangs in a thread would hold the process up; everything that matters is closed.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def bind_listener(host: str, port: int) -> socket.socket:
    """A socket bound to `host`:`port`; nobody can connect before it is served. Port 0 takes a free one.

    Bound before anything is opened: an address that cannot be had is a SettingsError, and leaves nothing behind.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise SettingsError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; -b and -p choose another address"
        ) from error
    return listener


def inherited_listener(descriptor: int) -> socket.socket:
    """The socket that a parent process bound."""
    return socket.socket(fileno=descriptor)


def real_port(listener: socket.socket) -> int:
    """The port that a socket is bound to."""
    return int(listener.getsockname()[1])


async def serve_api(
    application: Application,
    host: str,
    listener: socket.socket,
    stop: asyncio.Event,
    *,
    ready: Callable[[], None] | None = None,
) -> None:
    """Serve HTTP and WebSocket from a bound socket until `stop` is set. `host` is how it was called.

    `ready` is called when everything is there to serve. Raises SettingsError where this process must not work beside
    the others of its deployment; StorageUnavailable if that cannot be found out.
    """
    closing = asyncio.Event()
    port = real_port(listener)
    bind = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    presence = application.api_presence()
    # Workers must know who can be reached before anybody is.
    await presence.enter({"bind": bind})
    context = application.api_context(host=host, port=port, closing=closing)
    api = create_api(context, application.blueprints)

    async def until_stopped() -> None:
        await stop.wait()
        # Streams end by themselves when they see this, before the server would cut them.
        closing.set()

    telling = asyncio.create_task(presence.keep_telling({"bind": bind}))
    log.info("serving", url=f"http://{bind}", process=os.getpid())
    _spare_collector()
    if ready is not None:
        ready()
    try:
        await serve(api, context, listener, until_stopped)
    finally:
        telling.cancel()
        # A report under way must not come after the good-bye.
        await asyncio.gather(telling, return_exceptions=True)
        # What a queue that hangs does not get the reconciler puts there.
        for step in (presence.leave, context.submission.settled):
            with suppress(StorageUnavailable, TimeoutError):
                async with asyncio.timeout(_GOODBYE_SECONDS):
                    await step()


def _spare_collector() -> None:
    """What is loaded by now stays for good, and a request leaves few cycles: look for garbage less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECTED_AFTER)


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
