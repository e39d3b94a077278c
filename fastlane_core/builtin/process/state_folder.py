"""The folder that all workers of a machine share: the engine of the process runner.

    runs/<execution id>/      a run that is not finished
    finished/<execution id>   says that the run was finished: a start that comes late must not repeat it
    aside/                    what is being made or removed

All of this blocks: it runs in threads.
"""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from fastlane_core.builtin.process import shim
from fastlane_core.builtin.process.launch import START_TIME, launch
from fastlane_core.builtin.process.run_folder import (
    Ended,
    RunFolder,
    RunGone,
    RunRecord,
    Started,
    remove_tree,
    this_world,
)

_log = structlog.get_logger(__name__)

#: Seconds for which a finished run is remembered: far longer than a start can be under way.
REMEMBERED = 3600.0
#: Seconds between looks for what can be forgotten.
_SWEEP_INTERVAL = 300.0
_ID = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,200}")


class Busy(Exception):
    """Somebody else has had the run in hand for too long."""


class StateFolder:
    """Starts, lists and removes runs."""

    def __init__(self, path: Path, *, max_output_bytes: int, clock: Callable[[], float]) -> None:
        self.path = path
        self._runs = path / "runs"
        self._finished = path / "finished"
        self._aside = path / "aside"
        self._max_output_bytes = max_output_bytes
        self._clock = clock
        self._world = ""
        self._next_sweep = 0.0

    def open(self) -> None:
        """Make what is missing, readable by this user alone. Raises OSError."""
        for folder in (self.path, self._runs, self._finished, self._aside):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path.chmod(0o700)
        self._world = this_world()
        self._sweep()

    def run(self, execution_id: str) -> RunFolder:
        """The folder of a run, there or not. Raises RunGone for what is no execution id."""
        if not _ID.fullmatch(execution_id):
            raise RunGone
        return RunFolder(self._runs / execution_id)

    def home(self, execution_id: str) -> Path:
        """The folder that the command runs in. Raises RunGone for what is no execution id."""
        return self.run(execution_id).path / shim.WORK_FOLDER

    def start(self, record: RunRecord, command: shim.Launch) -> float | None:
        """Start the command, unless it was started before; when it was, as far as that is known.

        Raises Busy, LaunchFailed, OSError.
        """
        run = self.run(record.execution_id)
        deadline = time.monotonic() + 2 * START_TIME
        while time.monotonic() < deadline:
            if self._was_finished(record.execution_id):
                return None
            began = _began(run)
            if not run.path.is_dir():
                RunFolder.create(run.path, record, aside=self._new_aside())
            try:
                if self._start_if_free(run, record, command):
                    return began
            except RunGone:
                # Finished between two looks.
                continue
            time.sleep(0.002)
        raise Busy

    def settle(self, execution_id: str, *, refuse_start: bool = False) -> Started | Ended | None:
        """See `RunFolder.settle`."""
        return self.run(execution_id).settle(self._clock(), refuse_start=refuse_start)

    def finish(self, execution_id: str) -> bool:
        """Remove an ended run and remember that it was. False while it runs, or somebody has it in hand."""
        self._sweep()
        run = self.run(execution_id)
        try:
            if not isinstance(run.settle(self._clock(), refuse_start=True), Ended):
                return False
            with run.lock() as descriptor:
                if descriptor is None:
                    return False
                remembered = self._finished / execution_id
                remembered.touch(mode=0o600)
                os.utime(remembered, (self._clock(), self._clock()))
                removed = self._new_aside()
                run.path.rename(removed)
        except RunGone:
            return True
        _remove(removed)
        return True

    def list(self, deployment_id: str) -> Sequence[tuple[RunRecord, bool]]:
        """All runs of a deployment, oldest first, and whether each still runs."""
        found = []
        for path in self._runs.iterdir() if self._runs.is_dir() else ():
            run = RunFolder(path)
            record = run.record()
            if record is not None and record.deployment_id == deployment_id:
                running = run.started() is not None and run.ended() is None and run.is_locked()
                found.append((record, running))
        return sorted(found, key=lambda each: (each[0].created_at, each[0].execution_id))

    def _start_if_free(self, run: RunFolder, record: RunRecord, command: shim.Launch) -> bool:
        """Whether the run is started now, be it by this call or by another."""
        with run.lock() as descriptor:
            if descriptor is None:
                return run.started() is not None or run.ended() is not None
            if self._was_finished(record.execution_id):
                removed = self._new_aside()
                run.path.rename(removed)
                _remove(removed)
                return True
            if run.started() is None and run.ended() is None:
                if run.record() != record:
                    run.describe(record)
                launch(
                    run.path,
                    descriptor,
                    command,
                    max_output_bytes=self._max_output_bytes,
                    world=self._world,
                )
            return True

    def _was_finished(self, execution_id: str) -> bool:
        return (self._finished / execution_id).exists()

    def _new_aside(self) -> Path:
        return self._aside / str(uuid.uuid4())

    def _sweep(self) -> None:
        """Forget runs finished long ago, and remove what a killed worker left aside."""
        now = self._clock()
        if now < self._next_sweep:
            return
        self._next_sweep = now + _SWEEP_INTERVAL
        for path in (*self._finished.iterdir(), *self._aside.iterdir()):
            if _is_older(path, now - REMEMBERED):
                _remove(path)


def _began(run: RunFolder) -> float | None:
    """When the run's command was started; None if it was not."""
    known = run.ended() or run.started()
    return None if known is None else known.started_at


def _is_older(path: Path, than: float) -> bool:
    try:
        return path.stat().st_mtime < than
    except FileNotFoundError:
        # Another worker sweeps too.
        return False


def _remove(path: Path) -> None:
    """Remove for good; what cannot be removed now is tried again by a later sweep."""
    try:
        if path.is_dir():
            remove_tree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        _log.warning("a folder of an ended run could not be removed yet", folder=str(path), error=str(error))
