"""Command lines for what the runner suite needs a run to do."""

from __future__ import annotations

import shlex
from collections.abc import Sequence


class ShellCommands:
    """Behaviours in terms of a POSIX `sh` with `cat`, `head`, `seq`, `sleep` and `tr`, as busybox has them.

    A runner whose runs have no such shell overrides every method; what must happen is told by the docstrings.
    """

    def write(self, stdout: bytes = b"", stderr: bytes = b"") -> str:
        """Write exactly these bytes, and end with 0. For some hundred bytes at most."""
        steps = [f"printf '{_octal(data)}'{target}" for data, target in ((stdout, ""), (stderr, " >&2")) if data]
        return _sh("; ".join(steps) or ":")

    def exit_with(self, code: int) -> str:
        """End with this exit code, silently."""
        return _sh(f"exit {code}")

    def long_line(self, size: int) -> str:
        """Write `size` times `x` to stdout without a newline."""
        return _sh(f"head -c {size} /dev/zero | tr '\\000' x")

    def count(self, stdout: int, stderr: int) -> str:
        """Write the lines `1` to `stdout` to stdout and, at the same time, `1` to `stderr` to stderr."""
        return _sh(f"seq 1 {stderr} >&2 & seq 1 {stdout}; wait")

    def count_slowly(self, lines: int, pause: float) -> str:
        """Write the lines `1` to `lines` to stdout, with `pause` seconds before each."""
        return _sh(f"for i in $(seq 1 {lines}); do sleep {pause}; echo $i; done")

    def wait_for_stop(self) -> str:
        """Write the line `ready`, then go on for a minute; end at once when asked to stop, leaving a child behind."""
        return _sh("trap 'exit 143' TERM; sleep 60 & echo ready; wait")

    def ignore_stop(self) -> str:
        """Write the line `ready`, then go on for a minute whatever is asked."""
        return _sh("trap '' TERM; echo ready; for i in $(seq 1 600); do sleep 0.1; done")

    def print_arguments(self, arguments: Sequence[str]) -> str:
        """Write each of the arguments, as the command gets them, with a NUL behind it."""
        return shlex.join(["sh", "-c", 'for each; do printf "%s\\000" "$each"; done', "sh", *arguments])

    def print_environment(self) -> str:
        """Write `NAME=value` of the whole environment, with a NUL behind each."""
        return "cat /proc/self/environ"

    def missing(self) -> str:
        """A command that does not exist."""
        return "fastlane-no-such-command --help"

    def not_executable(self) -> str:
        """A command whose file may not be executed."""
        return "/etc/passwd"


def _sh(script: str) -> str:
    return shlex.join(["sh", "-c", script])


def _octal(data: bytes) -> str:
    return "".join(f"\\{byte:03o}" for byte in data)
