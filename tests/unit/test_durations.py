"""Lengths of time as people write them."""

from __future__ import annotations

import pytest

from fastlane_core.durations import parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0s", 0),
        ("10s", 10),
        ("1.5s", 1.5),
        ("2m30s", 150),
        ("4h30m25s", 16_225),
        ("240h", 864_000),
        ("1d", 86_400),
        ("1d1s", 86_401),
        (" 5m ", 300),
    ],
)
def test_lengths_of_time_are_understood(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", " ", "5", "abc", "5s2m", "-5s", "1.5h", "1h 2m", "5sec", "1e3s", "٥s", "s", "1d1d"]
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a length of time such as"):
        parse_duration(text)
