"""The small process between a worker and a command: it outlives the worker and keeps what the command did.

Executed as a script (`python -I -S shim.py LOCK ANSWER LIMIT WORLD`) in the run's folder, so it imports little. It

1. reads the command and its environment from stdin, whole or not at all;
2. leaves the worker's session and family; the inherited lock on the folder stays held for as long as it lives;
3. makes the command's process, stopped at a gate, in a session of its own;
4. writes `started.json`, opens the gate, and answers the worker: from here on nobody may start the run again;
5. copies the command's stdout and stderr from pipes into files (files of the command's own would be emptied by
   `> /dev/stderr`), until the command has ended and everything that it left running was killed;
6. writes `exit.json` and ends, which frees the lock.

SIGTERM asks the command's process group to end; SIGUSR1 kills everything that the command started.
Every file appears whole: written aside, synced, renamed.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import time
from contextlib import suppress

STARTED_FILE = "started.json"
EXIT_FILE = "exit.json"
STDOUT_FILE = "stdout"
STDERR_FILE = "stderr"
WORK_FOLDER = "work"
ANSWER_STARTED = b"started\n"

_PIECE = 64 * 1024
#: Seconds between tries to write to a disk that is full.
_RETRY = 0.5
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


class Launch:
    """The command and its environment, as they pass through the pipe: exact bytes, closed by an end mark."""

    _END = b"end of launch"

    def __init__(self, argv: list[bytes], env: dict[bytes, bytes]) -> None:
        self.argv = argv
        self.env = env

    def encode(self) -> bytes:
        """For the pipe. No argument, name or value may hold a NUL."""
        pairs = [name + b"=" + value for name, value in self.env.items()]
        return b"\0".join([str(len(self.argv)).encode(), *self.argv, *pairs, self._END])

    @classmethod
    def decode(cls, data: bytes) -> Launch:
        """From the pipe. Raises ValueError when it is not whole: the worker died while writing it."""
        count, *fields = data.split(b"\0")
        if not fields or fields.pop() != cls._END:
            raise ValueError("the worker went away before it had told the whole command")
        argv, pairs = fields[: int(count)], fields[int(count) :]
        return cls(argv, dict(pair.split(b"=", 1) for pair in pairs))


def start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot: with the pid it names a process for good. None if it is gone.

    Field 22 of proc(5) `/proc/<pid>/stat`; a zombie counts as gone.
    """
    fields = stat_fields(pid)
    return None if fields is None or fields[0] in (b"Z", b"X") else int(fields[19])


def stat_fields(pid: int) -> list[bytes] | None:
    """The fields of `/proc/<pid>/stat` from the third (the state) on; None if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def write_durably(name: str, text: str) -> None:
    """Make a file appear with this text, whole, and so that it survives a crash of the machine."""
    aside = f"{name}.{os.getpid()}"
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(descriptor, text.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.rename(aside, name)
    sync_folder(os.path.dirname(name) or ".")


def sync_folder(path: str) -> None:
    """Make the names in a folder survive a crash of the machine."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def main(lock: int, answer: int, limit: int, world: str) -> None:
    for descriptor in (lock, answer):
        os.set_inheritable(descriptor, False)
    with open(0, "rb", closefd=False) as stdin:
        launch = Launch.decode(stdin.read())
    # Kept open, so that no descriptor made from here on is one of the three that the command gets.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if os.fork():
        os._exit(0)
    try:
        command = _Command(launch, lock, answer, world)
    except OSError as error:
        os.write(answer, str(error).encode())
        raise
    # The worker may have died meanwhile; the next one finds the run.
    with suppress(BrokenPipeError):
        os.write(answer, ANSWER_STARTED)
    os.close(answer)
    command.supervise(limit)


class _Command:
    """The command's process, and everything that it starts."""

    def __init__(self, launch: Launch, lock: int, answer: int, world: str) -> None:
        os.umask(0o077)
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        self._signals = _signal_pipe()
        gate, open_gate = os.pipe()
        report, reporting = os.pipe()
        stdout, command_stdout = os.pipe()
        stderr, command_stderr = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            for descriptor in (lock, answer, open_gate, report):
                os.close(descriptor)
            _become(launch, gate, reporting, command_stdout, command_stderr)
        for descriptor in (gate, reporting, command_stdout, command_stderr):
            os.close(descriptor)
        self._copies = [_Copy(stdout, STDOUT_FILE), _Copy(stderr, STDERR_FILE)]
        if os.read(report, 1) != b"+":
            raise OSError("the process that was to become the command could not be made ready")
        self._started_at = time.time()
        write_durably(
            STARTED_FILE,
            f'{{"shim": {os.getpid()}, "shim_ticks": {start_ticks(os.getpid())}, "command": {self.pid}, '
            f'"command_ticks": {start_ticks(self.pid)}, "world": "{world}", "started_at": {self._started_at!r}}}',
        )
        # One that was killed at the gate: its end will tell.
        with suppress(BrokenPipeError):
            os.write(open_gate, b"!")
        os.close(open_gate)
        #: Why the command could not be executed; 0 when it was.
        self._exec_errno = int(os.read(report, 16) or b"0")
        os.close(report)
        self._over_limit = ""

    def supervise(self, limit: int) -> None:
        """Copy output and pass signals on until all has ended; then write down how."""
        ended = None
        while ended is None:
            poll = select.poll()
            poll.register(self._signals, select.POLLIN)
            stuck = any(copy.pending for copy in self._copies)
            for copy in self._copies:
                if copy.open and not copy.pending:
                    poll.register(copy.source, select.POLLIN)
            poll.poll(_RETRY * 1000 if stuck else None)
            for number in _received(self._signals):
                if number == signal.SIGTERM:
                    _signal(-self.pid, signal.SIGTERM)
                elif number == signal.SIGUSR1:
                    _signal(-self.pid, signal.SIGKILL)
            for copy in self._copies:
                if copy.step(limit) and not self._over_limit:
                    self._over_limit = copy.name
                    _signal(-self.pid, signal.SIGKILL)
            ended = self._reap()
        self._kill_rest()
        while any(copy.open or copy.pending for copy in self._copies):
            for copy in self._copies:
                copy.step(limit, last=True)
            if any(copy.pending for copy in self._copies):
                time.sleep(_RETRY)
        self._record(*ended)

    def _reap(self) -> tuple[int | None, int | None] | None:
        """Exit code or signal of the command if it has ended. It stays a zombie, so that its pid stays its own."""
        while True:
            child = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT | os.WNOHANG)
            if child is None:
                return None
            if child.si_pid == self.pid:
                return (child.si_status, None) if child.si_code == os.CLD_EXITED else (None, child.si_status)
            os.waitpid(child.si_pid, 0)

    def _kill_rest(self) -> None:
        """Kill what the command left behind, however far it has gone: orphans fall to this process."""
        _signal(-self.pid, signal.SIGKILL)
        while children := [pid for pid in _children() if pid != self.pid]:
            for pid in children:
                _signal(pid, signal.SIGKILL)
            for pid in children:
                os.waitpid(pid, 0)

    def _record(self, exit_code: int | None, killed_by: int | None) -> None:
        text = (
            f'{{"exit_code": {_json(exit_code)}, "signal": {_json(killed_by)}, "exec_errno": {self._exec_errno}, '
            f'"over_limit": "{self._over_limit}", "started_at": {self._started_at!r}, "finished_at": {time.time()!r}}}'
        )
        while True:
            try:
                for copy in self._copies:
                    os.fsync(copy.target)
                write_durably(EXIT_FILE, text)
                return
            except FileNotFoundError:
                # Somebody removed the folder: there is nowhere, and nobody, to tell.
                return
            except OSError as error:
                # A full disk: the run goes on counting as running until its result can be kept.
                _complain(error)
                time.sleep(_RETRY)


class _Copy:
    """One stream on its way from a pipe into a file."""

    def __init__(self, source: int, name: str) -> None:
        os.set_blocking(source, False)
        self.source = source
        self.name = name
        self.target = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.open = True
        self.pending = b""
        self._size = 0

    def step(self, limit: int, *, last: bool = False) -> bool:
        """Copy one piece, if there is one. True when the stream has more than `limit` bytes; they are dropped.

        With `last` nobody is left who could write, and a pipe without data is at its end.
        """
        if not self.pending:
            self.pending = self._read(last)
        over = self._size + len(self.pending) > limit
        if over:
            self.pending = self.pending[: limit - self._size]
        try:
            while self.pending:
                written = os.write(self.target, self.pending)
                self._size += written
                self.pending = self.pending[written:]
        except OSError as error:
            # A full disk: what is pending is tried again, and the command waits.
            _complain(error)
        return over

    def _read(self, last: bool) -> bytes:
        if not self.open:
            return b""
        try:
            data = os.read(self.source, _PIECE)
        except BlockingIOError:
            self.open = not last
            return b""
        self.open = bool(data)
        return data


def _become(launch: Launch, gate: int, reporting: int, stdout: int, stderr: int) -> None:
    """Turn this process into the command, once the gate opens; ends the process in any case."""
    try:
        os.setsid()
        # Not even a shim that is killed leaves the command behind.
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.set_wakeup_fd(-1)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.umask(0o022)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        os.chdir(WORK_FOLDER)
        os.write(reporting, b"+")
        if os.read(gate, 1):
            os.execvpe(launch.argv[0], launch.argv, launch.env)  # noqa: S606
    except OSError as error:
        os.write(reporting, str(error.errno).encode())
    finally:
        os._exit(127)


def _signal_pipe() -> int:
    """The read end of a pipe that gets the number of each signal that is to be handled."""
    read, write = os.pipe()
    for descriptor in (read, write):
        os.set_blocking(descriptor, False)
    signal.set_wakeup_fd(write)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda *_: None)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    return read


def _received(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except BlockingIOError:
        return b""


def _signal(pid: int, number: int) -> None:
    """Signal a child, or with a negative pid its group; both are unreaped, so the number cannot be another's."""
    try:
        os.kill(pid, number)
    except PermissionError as error:
        # It runs as somebody else (setuid); all that is left is to wait for it.
        _complain(error)


def _complain(error: OSError) -> None:
    """Say it in `shim.log`, where that can still be written; once, not at each try."""
    text = f"{error}\n".encode()
    if text not in _complaints:
        _complaints.add(text)
        with suppress(OSError):
            os.write(2, text)


_complaints: set[bytes] = set()


def _children() -> list[int]:
    """Pids of this process's children that have not been reaped."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            fields = stat_fields(int(name))
            if fields is not None and int(fields[1]) == os.getpid():
                found.append(int(name))
    return found


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def _json(value: int | None) -> str:
    return "null" if value is None else str(value)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
    os._exit(0)
