"""Where reading a container's log goes on: a position that another worker resumes from without a gap or a repeat.

The engine cannot be asked for "everything behind frame n", only for frames since a time. Times alone do not tell where
a frame stands: the two streams are written to the log side by side, so frames may stand slightly out of order, and all
frames of a line longer than 16 KiB bear the time of its first one, however long ago that was. What is stable is the
order in the log, for any fixed time to start from.

So a position is `<since>:<count>`: of the frames whose time is at or after the Unix second `since`, in the order of the
log, the first `count` were read. `since` follows the output at a distance, so that little is read again, and never
passes the beginning of a line that is still being written.
"""

from __future__ import annotations

from collections import deque

from fastlane_core.models import Stream

#: Seconds by which `since` stays behind the newest frame: far more than one stream overtakes the other.
_DISTANCE = 5


class Positions:
    """Keeps count of the frames of one answer of `/logs`, which was asked for with `since`."""

    def __init__(self, after: str | None) -> None:
        """`after` is the position that the answer was asked from; ValueError for what is none."""
        #: Unix second to ask the engine for; 0 for the start of the log.
        self.since, self._unread = parse_position(after)
        self._origin = self._since = self.since
        self._total = 0
        #: Frames at or after `_since`, also by second; only seconds that `_since` may pass yet.
        self._counted = 0
        self._seconds: deque[list[int]] = deque()
        self._newest = 0
        self._line_began: dict[Stream, int | None] = {Stream.STDOUT: None, Stream.STDERR: None}
        self._may_advance = True

    def add(self, stream: Stream, second: int, *, ends_line: bool, begins_line: bool = False, count: int = 1) -> int:
        """Count the next frames, which are alike; how many of them, the last ones, were not read before `after`.

        `begins_line`: they do not go on with the line of their stream that has not ended.
        """
        self._total += count
        if second >= self._since:
            self._counted += count
        else:
            # The clock of the engine was set back: go back to a start that this frame is not before, and stay there.
            self._since, self._counted, self._may_advance = self._origin, self._total, False
        if ends_line:
            self._line_began[stream] = None
        elif begins_line or self._line_began[stream] is None:
            self._line_began[stream] = second
        if self._may_advance:
            self._count_second(second, count)
        new = max(0, count - self._unread)
        self._unread -= count - new
        return new

    @property
    def current(self) -> str:
        """The position behind the last frame."""
        return f"{self._since}:{self._counted}"

    def _count_second(self, second: int, count: int) -> None:
        seconds = self._seconds
        for each in reversed(seconds):
            if each[0] == second:
                each[1] += count
                return
        seconds.append([second, count])
        if second > self._newest:
            self._newest = second
            self._advance()

    def _advance(self) -> None:
        target = self._newest - _DISTANCE
        for began in self._line_began.values():
            if began is not None:
                target = min(target, began)
        if target <= self._since:
            return
        self._since = target
        self._counted -= sum(count for second, count in self._seconds if second < target)
        self._seconds = deque(each for each in self._seconds if each[0] >= target)


def parse_position(position: str | None) -> tuple[int, int]:
    """Second and count of a position; zeros for the start of the log. Raises ValueError for what is no position."""
    if position is None:
        return 0, 0
    since, _, count = position.partition(":")
    return int(since), int(count)
