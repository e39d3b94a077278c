"""Telling machines apart, and the dead from the living, also out of containers and over a reboot."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from fastlane_core.engine.machine import Machine

ONE = Machine(boot="b1", installation="i1", host="one", pid_namespace="p1")


@pytest.mark.parametrize(
    ("other", "is_other"),
    [
        (ONE, False),
        # A container of the same machine.
        (replace(ONE, installation="", host="f00", pid_namespace="p2"), False),
        (replace(ONE, boot="b2", installation="i2", host="two"), True),
        # Containers of two machines: the image's machine-id is the same, or there is none.
        (replace(ONE, boot="b2", host="f00"), True),
        (replace(ONE, boot="b2", installation=""), True),
        # The same machine, after a reboot.
        (replace(ONE, boot="b2"), False),
        # Without Linux, the name decides.
        (replace(ONE, boot="", installation=""), False),
        (replace(ONE, boot="", installation="", host="two"), True),
        # A report that tells nothing is no reason to refuse anything.
        (Machine(boot="", installation="", host="", pid_namespace=""), False),
    ],
)
def test_machines_are_told_apart(other: Machine, is_other: bool) -> None:
    assert ONE.is_other(other) == is_other
    assert other.is_other(ONE) == is_other


def test_a_process_that_can_be_looked_up_is_known_to_have_ended() -> None:
    here = Machine.this()

    assert here.has_ended(here, 2**22 + 1)
    assert here.has_ended(here, os.getpid())
    assert not here.has_ended(here, os.getppid())
    assert not here.has_ended(replace(here, pid_namespace="other"), 2**22 + 1)


def test_what_ran_before_the_reboot_has_ended_and_what_runs_elsewhere_may_live() -> None:
    assert ONE.has_ended(replace(ONE, boot="b0"), 1)
    assert not ONE.has_ended(replace(ONE, boot="b0", host="two"), 1)
    assert not Machine(boot="", installation="", host="one", pid_namespace="").has_ended(ONE, 1)


def test_it_is_the_same_after_a_report() -> None:
    assert Machine.told({"machine": ONE.as_json()}) == ONE
    assert Machine.told({}) == Machine.told({"machine": "x"})
