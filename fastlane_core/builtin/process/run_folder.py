"""The folder of one run: what starters, waiters, the shim and the one who finishes agree through.

    run.json      whose run it is; there from the moment that the folder is
    lock          locked (flock) by whoever changes the run's state: a starter, then the shim until it ends
    started.json  the command may have begun: from here on nobody starts it again
    stdout, stderr, work/
    exit.json     how it ended

Whoever gets the lock knows that no shim lives. A started run without `exit.json` whose lock is free is lost.
All of this blocks, for milliseconds: it runs in threads.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from fastlane_core.builtin.process import shim

_RUN_FILE = "run.json"
_LOCK_FILE = "lock"
#: Seconds that killed processes get to disappear.
_KILL_TIME = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """Whose run a folder holds."""

    execution_id: str
    deployment_id: str
    fence: int
    created_at: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Started:
    """The shim and the command, as started by them."""

    shim: int
    shim_ticks: int
    command: int
    command_ticks: int
    #: Boot and pid namespace in which those numbers mean something.
    world: str
    started_at: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """How a run ended."""

    exit_code: int | None = None
    signal: int | None = None
    #: Why the command could not be executed; 0 when it was.
    exec_errno: int = 0
    #: The stream that grew too long, or "".
    over_limit: str = ""
    started_at: float | None = None
    finished_at: float | None = None
    #: The shim was killed, or the machine was: how the command ended is not known.
    lost: bool = False
    #: It was stopped before it had begun.
    never_started: bool = False


class RunGone(Exception):
    """There is no such run, or it was never started."""


class RunFolder:
    """One run's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, record: RunRecord, *, aside: Path) -> None:
        """Make the folder, whole, by way of `aside` on the same disk; no error if it is there already."""
        aside.mkdir(mode=0o700)
        (aside / shim.WORK_FOLDER).mkdir(mode=0o700)
        (aside / _LOCK_FILE).touch(mode=0o600)
        cls(aside).describe(record)
        try:
            aside.rename(path)
        except OSError:
            if not path.is_dir():
                raise
            remove_tree(aside)
        else:
            shim.sync_folder(str(path.parent))

    def describe(self, record: RunRecord) -> None:
        """Write whose run it is."""
        shim.write_durably(str(self.path / _RUN_FILE), json.dumps(asdict(record)))

    def record(self) -> RunRecord | None:
        """Whose run it is; None when the folder is gone."""
        text = self._read(_RUN_FILE)
        return None if text is None else RunRecord(**json.loads(text))

    def started(self) -> Started | None:
        """Set once the command may have begun."""
        text = self._read(shim.STARTED_FILE)
        return None if text is None else Started(**json.loads(text))

    def ended(self) -> Ended | None:
        """Set once the run has ended."""
        text = self._read(shim.EXIT_FILE)
        return None if text is None else Ended(**json.loads(text))

    @contextmanager
    def lock(self) -> Iterator[int | None]:
        """The descriptor of the run's lock, or None when somebody else holds it. Raises RunGone without a folder.

        A child that inherits the descriptor holds the lock beyond the block.
        """
        try:
            descriptor = os.open(self.path / _LOCK_FILE, os.O_RDWR)
        except FileNotFoundError:
            raise RunGone from None
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
                return
            if not self._is_current(descriptor):
                raise RunGone
            yield descriptor
        finally:
            os.close(descriptor)

    def is_locked(self) -> bool:
        """Whether a shim (or, for an instant, somebody else) has the run in hand."""
        try:
            with self.lock() as descriptor:
                return descriptor is None
        except RunGone:
            return False

    def settle(self, now: float, *, refuse_start: bool = False) -> Started | Ended | None:
        """Where the run stands: running, ended, or None while somebody is just starting it.

        A run whose shim died is brought to its end: what is left of it is killed, and that it is lost is written
        down. One that was never started raises RunGone, or is ended for good with `refuse_start`.
        """
        if ended := self.ended():
            return ended
        with self.lock() as descriptor:
            if descriptor is None:
                return self.ended() or self.started()
            if ended := self.ended():
                return ended
            started = self.started()
            if started is not None:
                _kill_leftovers(started)
                ended = Ended(lost=True, started_at=started.started_at, finished_at=now)
            elif refuse_start:
                ended = Ended(never_started=True, finished_at=now)
            else:
                raise RunGone
            shim.write_durably(str(self.path / shim.EXIT_FILE), json.dumps(asdict(ended)))
            return ended

    def _read(self, name: str) -> bytes | None:
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None

    def _is_current(self, descriptor: int) -> bool:
        """Whether the locked file is still the one in the folder, and not that of a folder removed meanwhile."""
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self.path / _LOCK_FILE))
        except FileNotFoundError:
            return False


def this_world() -> str:
    """Names this boot of the machine and this pid namespace: elsewhere a pid means another process."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"


def is_alive(pid: int, ticks: int) -> bool:
    """Whether that very process runs."""
    return shim.start_ticks(pid) == ticks


def remove_tree(path: Path) -> None:
    """Remove a folder with all that a command may have left in it; no error if it is gone."""
    for folder, names, _ in os.walk(path, topdown=True):
        for name in names:
            below = Path(folder, name)
            if not below.is_symlink():
                below.chmod(0o700)
    with suppress(FileNotFoundError):
        shutil.rmtree(path)


def _kill_leftovers(started: Started) -> None:
    """Kill what is left of a command whose shim died, as far as it stayed in the command's session."""
    if started.world != this_world():
        return
    leader = shim.start_ticks(started.command)
    if leader is not None and leader != started.command_ticks:
        return
    deadline = time.monotonic() + _KILL_TIME
    while members := _session(started.command):
        for pid in members:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if time.monotonic() > deadline:
            raise OSError(f"processes {sorted(members)} were killed but do not end")
        time.sleep(0.002)


def _session(leader: int) -> set[int]:
    """Living processes of a session."""
    members = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            fields = shim.stat_fields(int(name))
            if fields is not None and int(fields[3]) == leader and fields[0] not in (b"Z", b"X"):
                members.add(int(name))
    return members
