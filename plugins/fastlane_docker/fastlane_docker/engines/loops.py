"""Loops that look after engines for as long as a worker lives."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

log = structlog.get_logger(__name__)

#: Seconds until a loop that met an error which it does not expect is begun again.
_PAUSE_SECONDS = 1.0


async def kept_going(name: str, loop: Callable[[], Awaitable[None]], *, pause: float = _PAUSE_SECONDS) -> None:
    """Run a loop that ends only when it is cancelled; one that crashes is told of and begun again after a pause."""
    while True:
        try:
            await loop()
        except Exception:
            log.exception("a loop crashed and is begun again", loop=name)
        await asyncio.sleep(pause)
