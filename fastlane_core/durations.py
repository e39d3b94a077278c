"""Lengths of time as people write them."""

from __future__ import annotations

import re

_UNITS = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0}
_DURATION = re.compile(r"(?:([0-9]{1,9})d)?(?:([0-9]{1,9})h)?(?:([0-9]{1,9})m)?(?:([0-9]{1,9}(?:\.[0-9]{1,6})?)s)?")


def parse_duration(text: str) -> float:
    """The seconds that `10s`, `2m30s`, `4h` or `1d` stand for; ValueError for anything else.

    Days, hours, minutes and seconds in that order, each at most once; only seconds may have decimals.
    """
    found = _DURATION.fullmatch(text.strip())
    if found is None or not any(found.groups()):
        raise ValueError(f"{text!r}: expected a length of time such as 30s, 2m30s, 4h or 1d")
    return sum(
        float(number) * seconds for number, seconds in zip(found.groups(), _UNITS.values(), strict=True) if number
    )
