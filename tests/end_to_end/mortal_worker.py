"""A worker that kills itself when it reaches a fault point: `python -m tests.end_to_end.mortal_worker CONFIG POINT`.

With POINT `none` it works on until SIGTERM.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from fastlane_core.app import open_application
from fastlane_core.engine.faultpoints import FaultPoint


async def main(config: Path, point: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)

    def reach(reached: FaultPoint) -> None:
        if reached == point:
            os.kill(os.getpid(), signal.SIGKILL)

    async with open_application(config, {}) as application:
        await application.worker(reach=reach).run(stop)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
