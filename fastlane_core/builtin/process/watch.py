"""Watching and signalling a process that is not our child, safe against its pid becoming another's."""

from __future__ import annotations

import asyncio
import os
import signal

from fastlane_core.builtin.process.run_folder import is_alive


async def until_gone(pid: int, ticks: int) -> None:
    """Return when the process that had this pid, and started at these ticks, has ended.

    Wakes by pidfd_open(2). Returns at once where that cannot be had (too many open files, another pid namespace), so
    the caller looks again, and paces itself.
    """
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return
    try:
        # The descriptor names a process for good; what is left to ask is whether it is the one.
        if is_alive(pid, ticks):
            await _until_readable(descriptor)
    finally:
        os.close(descriptor)


def send_signal(pid: int, ticks: int, number: signal.Signals) -> None:
    """Signal that very process; nothing happens if it has ended. Raises PermissionError."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if is_alive(pid, ticks):
            signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return
    finally:
        os.close(descriptor)


async def _until_readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    readable = loop.create_future()

    def wake() -> None:
        if not readable.done():
            readable.set_result(None)

    loop.add_reader(descriptor, wake)
    try:
        await readable
    finally:
        loop.remove_reader(descriptor)
