"""Places that this worker could not reach lately: left alone for a while, so that the others get the work."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fastlane_core.engine.backoff import Backoff


@dataclass(slots=True)
class _Trouble:
    failures: int
    until: float
    why: str


class PlaceTrouble:
    """Remembers failures by lane and place. Times are passed in."""

    def __init__(self, backoff: Backoff | None = None) -> None:
        self._backoff = backoff or Backoff(first=0.5, cap=10.0)
        self._troubles: dict[tuple[str, str], _Trouble] = {}

    def failed(self, lane: str, place: str, why: str, *, now: float) -> float:
        """Leave the place alone for a while; returns for how many seconds."""
        known = self._troubles.get((lane, place))
        if known is not None and now < known.until:
            # One of a crowd that was under way together: the trouble counts once.
            return known.until - now
        failures = known.failures + 1 if known else 1
        delay = self._backoff.delay(failures, floor=self._backoff.ceiling(failures) / 2)
        self._troubles[lane, place] = _Trouble(failures, now + delay, why)
        return delay

    def worked(self, lane: str, place: str) -> None:
        """The place answers again."""
        self._troubles.pop((lane, place), None)

    def usable(self, lane: str, places: Iterable[str], *, now: float) -> list[str]:
        """Those of the places that may be tried now."""
        return [place for place in places if not self._is_out(lane, place, now)]

    def pause(self, lane: str, places: Iterable[str], *, now: float) -> float:
        """Seconds until the first of the places may be tried; 0 if one may be now or there are none."""
        waits = [self._troubles[lane, place].until - now for place in places if self._is_out(lane, place, now)]
        return max(0.0, min(waits, default=0.0))

    def reason(self, lane: str) -> str:
        """Why places of the lane are in trouble, as a sentence; "" when none is."""
        return "; ".join(sorted({known.why for (of, _), known in self._troubles.items() if of == lane}))

    def _is_out(self, lane: str, place: str, now: float) -> bool:
        known = self._troubles.get((lane, place))
        return known is not None and now < known.until
