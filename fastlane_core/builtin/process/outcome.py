"""From how a process ended to the outcome that core knows."""

from __future__ import annotations

import errno
import os
import signal

from fastlane_core.builtin.process.run_folder import Ended
from fastlane_core.models import Reason, RunOutcome


def outcome_of(ended: Ended) -> RunOutcome:
    """Exit codes are a shell's: 126 and 127 for a command that could not be executed, 128 + n for signal n."""
    code, reason, message = _judge(ended)
    return RunOutcome(
        exit_code=code,
        reason=reason,
        message=message,
        started_at=ended.started_at,
        finished_at=ended.finished_at,
    )


def _judge(ended: Ended) -> tuple[int | None, Reason, str]:
    if ended.never_started:
        return None, Reason.STOPPED, "it was stopped before its process had begun"
    if ended.lost:
        return (
            None,
            Reason.RUN_LOST,
            ("the process that kept the run was killed, or the machine went down; what was left of the run was killed"),
        )
    if ended.exec_errno:
        return _unexecuted(ended.exec_errno)
    if ended.over_limit:
        return (
            _killed(ended),
            Reason.SIGNAL,
            (f"killed because it wrote more to {ended.over_limit} than PROCESS_MAX_OUTPUT_BYTES allows"),
        )
    if ended.signal is not None:
        return _killed(ended), Reason.SIGNAL, f"killed by {_signal_name(ended.signal)}"
    if ended.exit_code == 0:
        return 0, Reason.SUCCEEDED, ""
    return ended.exit_code, Reason.EXIT_CODE, ""


def _unexecuted(number: int) -> tuple[int | None, Reason, str]:
    why = os.strerror(number)
    if number in (errno.ENOENT, errno.ENOTDIR):
        return 127, Reason.COMMAND_NOT_FOUND, f"the command, or the interpreter that it names, was not found: {why}"
    if number == errno.E2BIG:
        return None, Reason.START_REJECTED, f"the command and its environment are too long for this machine: {why}"
    return 126, Reason.COMMAND_NOT_EXECUTABLE, f"the command could not be executed: {why}"


def _killed(ended: Ended) -> int | None:
    return ended.exit_code if ended.signal is None else 128 + ended.signal


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
