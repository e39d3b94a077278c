"""The one back-off: exponential, with a cap and full jitter.

Full jitter as in "Exponential Backoff And Jitter" (M. Brooker, AWS Architecture Blog, 2015): spreads a crowd of
retries over the whole interval, which needs the fewest calls until all have succeeded.
"""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Backoff:
    """Delays that grow from `first` by `factor` up to `cap` seconds."""

    first: float
    factor: float = 2.0
    cap: float = 60.0
    #: Share of a delay that is drawn at random, 0 to 1.
    jitter: float = 1.0

    def ceiling(self, failures: int) -> float:
        """The longest delay after that many failures in a row (1 for the first), in seconds."""
        # The exponent is bounded: 2.0 ** 2000 would overflow, and the cap is reached long before.
        return float(min(self.cap, self.first * self.factor ** min(failures - 1, 64)))

    def delay(self, failures: int, *, floor: float = 0.0, chance: float | None = None) -> float:
        """A delay in seconds, drawn evenly from the jitter's share of the ceiling, and not below `floor`.

        `chance` in [0, 1) replaces the draw.
        """
        draw = random.random() if chance is None else chance  # noqa: S311 - spreads load, guards nothing
        ceiling = self.ceiling(failures)
        lowest = min(max(floor, ceiling * (1 - self.jitter)), ceiling)
        return lowest + draw * (ceiling - lowest)
