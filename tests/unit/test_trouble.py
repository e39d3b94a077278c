"""Places in trouble are left alone for a while."""

from __future__ import annotations

import pytest

from fastlane_core.engine.trouble import PlaceTrouble


def test_a_place_in_trouble_is_left_out_until_its_time_is_up() -> None:
    trouble = PlaceTrouble()
    delay = trouble.failed("lane", "a", "a refused", now=100.0)
    assert trouble.usable("lane", ["a", "b"], now=100.0) == ["b"]
    assert trouble.usable("lane", ["a", "b"], now=100.0 + delay) == ["a", "b"]
    assert trouble.usable("other", ["a"], now=100.0) == ["a"]


def test_failures_of_a_crowd_count_once_and_later_ones_wait_longer() -> None:
    trouble = PlaceTrouble()
    first = trouble.failed("lane", "a", "a refused", now=100.0)
    assert trouble.failed("lane", "a", "a refused", now=100.0) == pytest.approx(first)
    later = [trouble.failed("lane", "a", "a refused", now=200.0 + 100.0 * n) for n in range(6)]
    assert later[-1] > first


def test_a_place_that_answers_is_in_no_trouble() -> None:
    trouble = PlaceTrouble()
    trouble.failed("lane", "a", "a refused", now=100.0)
    assert trouble.reason("lane") == "a refused"
    trouble.worked("lane", "a")
    assert trouble.reason("lane") == ""
    assert trouble.usable("lane", ["a"], now=100.0) == ["a"]
