"""Getting a run's place ready (pulling its image), and saying on the record how far that is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from fastlane_core.contracts.runner import Runner
from fastlane_core.models import Progress, RunRequest

#: Seconds between two notes of progress on a record.
_PACE = 1.0


async def prepare(
    runner: Runner,
    request: RunRequest,
    *,
    stop_wanted: asyncio.Event,
    progressed: Callable[[Progress], None],
    note: Callable[[str], Awaitable[None]],
) -> None:
    """Return when the place is ready, or at once when a stop is wanted.

    `progressed` hears of every step, and must not block; `note` is awaited with the newest one, once a second at most.
    Raises what `runner.prepare` and `note` raise.
    """
    news = asyncio.Event()
    newest = ""

    def tell(progress: Progress) -> None:
        nonlocal newest
        newest = progress.message
        news.set()
        progressed(progress)

    async def keep_noting() -> None:
        while True:
            await news.wait()
            news.clear()
            await note(newest)
            await asyncio.sleep(_PACE)

    preparing = asyncio.ensure_future(runner.prepare(request, tell))
    noting = asyncio.create_task(keep_noting())
    stopping = asyncio.create_task(stop_wanted.wait())
    tasks = (preparing, noting, stopping)
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done - {stopping}:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
