"""Starting a shim: from here on the run is out of this process's hands."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from pathlib import Path

from fastlane_core.builtin.process import shim

#: Seconds that a shim gets to start the command; it takes some hundredths.
START_TIME = 15.0
_LOG_FILE = "shim.log"


class LaunchFailed(Exception):
    """The shim did not start the command; the message tells why."""


def launch(folder: Path, lock: int, command: shim.Launch, *, max_output_bytes: int, world: str) -> None:
    """Start a shim in a run's folder, with the run's lock, and return when the command is started. Blocks.

    Raises LaunchFailed and OSError. Then the lock tells whether there is a shim all the same.
    """
    answer, answering = os.pipe()
    try:
        with open(folder / _LOG_FILE, "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", shim.__file__, str(lock), str(answering), str(max_output_bytes), world],
                cwd=folder,
                env={},
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=log,
                pass_fds=(lock, answering),
                start_new_session=True,
            )
    except OSError:
        os.close(answer)
        raise
    finally:
        os.close(answering)
    deadline = time.monotonic() + START_TIME
    try:
        # The first process ends as soon as it has made the real one.
        _tell(process, command.encode(), deadline)
        told = _hear(answer, deadline)
    finally:
        os.close(answer)
        _reap(process, deadline)
    if told != shim.ANSWER_STARTED:
        raise LaunchFailed(told.decode(errors="replace") or _last_line(folder / _LOG_FILE))


def _tell(process: subprocess.Popen[bytes], data: bytes, deadline: float) -> None:
    assert process.stdin is not None
    descriptor = process.stdin.fileno()
    os.set_blocking(descriptor, False)
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    try:
        while data and poll.poll(_left(deadline)):
            data = data[os.write(descriptor, data) :]
    except BrokenPipeError:
        # It died; what it said, or did not say, tells why.
        pass
    finally:
        process.stdin.close()
    if data and time.monotonic() >= deadline:
        raise LaunchFailed(f"the shim did not read its command within {START_TIME:g} s")


def _hear(answer: int, deadline: float) -> bytes:
    poll = select.poll()
    poll.register(answer, select.POLLIN)
    told = b""
    while poll.poll(_left(deadline)):
        piece = os.read(answer, 4096)
        if not piece:
            return told
        told += piece
        if told == shim.ANSWER_STARTED:
            return told
    raise LaunchFailed(f"the shim did not start the command within {START_TIME:g} s")


def _reap(process: subprocess.Popen[bytes], deadline: float) -> None:
    try:
        process.wait(max(1.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic()) * 1000


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "the shim ended without a word"
