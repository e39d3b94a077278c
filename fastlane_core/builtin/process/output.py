"""Reading what a run wrote, from the files that its shim keeps."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastlane_core.builtin.process import shim
from fastlane_core.errors import RunnerError
from fastlane_core.models import Output, Stream

#: Largest piece of output, in bytes.
PIECE = 64 * 1024
#: Pieces per stream that are read at a time.
_PIECES = 4
_FILES = {Stream.STDOUT: shim.STDOUT_FILE, Stream.STDERR: shim.STDERR_FILE}
_POSITION = re.compile(r"o(\d{1,19}),e(\d{1,19})")


@dataclass(frozen=True, slots=True)
class Position:
    """How far reading has come: bytes of stdout and of stderr."""

    stdout: int = 0
    stderr: int = 0

    @classmethod
    def parse(cls, text: str | None) -> Position:
        """From its text form; None is the start."""
        if text is None:
            return cls()
        match = _POSITION.fullmatch(text)
        if match is None:
            raise RunnerError(f"{text!r} is no position in the output of a process; start again from the beginning")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"o{self.stdout},e{self.stderr}"

    def of(self, stream: Stream) -> int:
        """The bytes of one stream."""
        return self.stdout if stream is Stream.STDOUT else self.stderr

    def plus(self, stream: Stream, size: int) -> Position:
        """The position `size` bytes further on in one stream."""
        if stream is Stream.STDOUT:
            return Position(self.stdout + size, self.stderr)
        return Position(self.stdout, self.stderr + size)


def end_of_output(folder: Path) -> Position:
    """Where the output ends at the moment."""
    return Position(_size(folder / _FILES[Stream.STDOUT]), _size(folder / _FILES[Stream.STDERR]))


def read_output(folder: Path, after: Position, until: Position | None) -> Sequence[Output]:
    """Some pieces from `after` on, up to `until`; none at the end of what is there. Blocks."""
    outputs = []
    position = after
    for stream, name in _FILES.items():
        room = None if until is None else until.of(stream) - after.of(stream)
        for data in _pieces(folder / name, after.of(stream), room):
            position = position.plus(stream, len(data))
            outputs.append(Output(stream=stream, data=data, position=str(position)))
    return outputs


def _pieces(path: Path, offset: int, room: int | None) -> Sequence[bytes]:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return []
    try:
        pieces: list[bytes] = []
        while len(pieces) < _PIECES:
            data = os.pread(descriptor, PIECE if room is None else min(PIECE, room), offset)
            if not data:
                break
            pieces.append(data)
            offset += len(data)
            room = None if room is None else room - len(data)
        return pieces
    finally:
        os.close(descriptor)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
