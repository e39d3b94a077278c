"""`fastlane api --workers N`: one process that holds the listening socket, and N that serve from it.

The supervisor serves nothing and opens nothing, so there is little in it that could fail. Each child is a real
`fastlane api` with the socket handed down, and holds the reading end of a pipe whose writing end only the supervisor
has: when the supervisor dies, in whatever way, every child reads the pipe's end and ends too.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

import structlog

from fastlane_core.engine.backoff import Backoff

log = structlog.get_logger(__name__)

#: Seconds that a process which was asked to end gets before it is killed.
_GRACE = 8.0
#: A child that lived this many seconds had not crashed at its start: the back-off begins anew.
_STEADY = 30.0
_BACKOFF = Backoff(first=0.2, cap=10.0)


class Inherited(NamedTuple):
    """What a child gets from its supervisor, as file descriptors."""

    #: The bound socket that requests come from.
    listener: int
    #: Ends when the supervisor does.
    lifeline: int
    #: Where the child writes a byte once it serves.
    ready: int


def supervise(command: Sequence[str], listener: socket.socket, *, count: int) -> int:
    """Run `count` children that serve from `listener` until SIGTERM or SIGINT; the exit code to end with.

    `command` is that of a child, to which its `Inherited` is added. The first child is started alone: if it ends before
    it serves, its settings or servers are at fault, it has said so on stderr, and its exit code is returned. From then
    on a child that ends is replaced, at once the first time and with a growing delay if it keeps ending.
    """
    return asyncio.run(_Supervisor(command, listener, count).run())


def end_with_supervisor(inherited: Inherited) -> None:
    """In a child: end like on SIGTERM when the supervisor is gone, and within seconds whatever hangs."""
    for descriptor in inherited:
        os.set_inheritable(descriptor, False)

    def watch() -> None:
        # Nothing is ever written: this returns when the last writing end is closed.
        os.read(inherited.lifeline, 1)
        log.warning("the supervisor is gone: ending")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE)
        os._exit(1)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


def tell_ready(inherited: Inherited) -> None:
    """In a child: tell the supervisor that it is about to serve."""
    # A supervisor that is gone is noticed by the lifeline.
    with suppress(BrokenPipeError):
        os.write(inherited.ready, b"1")
    os.close(inherited.ready)


class _Supervisor:
    def __init__(self, command: Sequence[str], listener: socket.socket, count: int) -> None:
        self._command = command
        self._listener = listener
        self._count = count
        self._stop = asyncio.Event()
        self._children: set[asyncio.subprocess.Process] = set()
        # Never written to, and not inheritable: closed by the end of this process, however it ends.
        self._lifeline, self._held = os.pipe()

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        try:
            first, ready = await self._start()
            if not await self._unless_stopped(ready):
                return 0 if self._stop.is_set() else await self._refused(first)
            log.info("supervising", processes=self._count)
            slots = [asyncio.create_task(self._keep(first))]
            slots += [asyncio.create_task(self._keep(None)) for _ in range(self._count - 1)]
            stopped = asyncio.create_task(self._stop.wait())
            # A slot only ends by a defect, which must end everything.
            done, _ = await asyncio.wait([stopped, *slots], return_when=asyncio.FIRST_COMPLETED)
            for task in (stopped, *slots):
                task.cancel()
            await asyncio.gather(stopped, *slots, return_exceptions=True)
            for task in done:
                task.result()
            return 0
        finally:
            await self._end_all()

    async def _refused(self, child: asyncio.subprocess.Process) -> int:
        code = await child.wait()
        return code if code > 0 else 1

    async def _keep(self, child: asyncio.subprocess.Process | None) -> None:
        """See to it that there is a child, for ever."""
        loop = asyncio.get_running_loop()
        crashes = 0
        while True:
            begun = loop.time()
            if child is None:
                child, ready = await self._start()
                await ready
            code = await child.wait()
            self._children.discard(child)
            crashes = 1 if loop.time() - begun > _STEADY else crashes + 1
            delay = 0.0 if crashes == 1 else _BACKOFF.delay(crashes - 1, floor=0.1)
            how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
            log.warning("an API process ended and is replaced", process=child.pid, how=how, after_seconds=delay)
            child = None
            await asyncio.sleep(delay)

    async def _start(self) -> tuple[asyncio.subprocess.Process, asyncio.Future[bool]]:
        """A new child, and the future that tells whether it came to serve before it ended."""
        reading, writing = os.pipe()
        inherited = Inherited(self._listener.fileno(), self._lifeline, writing)
        try:
            child = await asyncio.create_subprocess_exec(
                *self._command, "--supervised", *map(str, inherited), pass_fds=inherited
            )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        self._children.add(child)
        return child, _first_byte(reading)

    async def _unless_stopped(self, ready: asyncio.Future[bool]) -> bool:
        stopped = asyncio.create_task(self._stop.wait())
        ready.add_done_callback(lambda _: stopped.cancel())
        await asyncio.wait([stopped])
        return not self._stop.is_set() and ready.result()

    async def _end_all(self) -> None:
        """Ask every child to end, and kill what does not in time."""
        waiting = {asyncio.create_task(child.wait()): child for child in self._children}
        _signal(waiting.values(), signal.SIGTERM)
        if not waiting:
            return
        _, left = await asyncio.wait(waiting, timeout=_GRACE)
        if left:
            log.warning("killing what did not end in time", processes=[waiting[task].pid for task in left])
            _signal([waiting[task] for task in left], signal.SIGKILL)
            await asyncio.wait(left)


def _signal(children: Iterable[asyncio.subprocess.Process], number: signal.Signals) -> None:
    for child in children:
        with suppress(ProcessLookupError):
            child.send_signal(number)


def _first_byte(descriptor: int) -> asyncio.Future[bool]:
    """Whether a byte comes before the end of a pipe, which is closed then."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[bool] = loop.create_future()

    def read() -> None:
        loop.remove_reader(descriptor)
        came = bool(os.read(descriptor, 1))
        os.close(descriptor)
        if not answer.done():
            answer.set_result(came)

    loop.add_reader(descriptor, read)
    return answer


def child_command(*arguments: str) -> Sequence[str]:
    """The command line of a child of this program; modules of the working directory do not get in its way."""
    return [sys.executable, "-P", "-m", "fastlane_core", *arguments]
