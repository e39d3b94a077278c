"""Records of `quick_dataclass` are to their users what frozen dataclasses are."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import pytest

from fastlane_core.quick_dataclass import quick_dataclass, replace


@quick_dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    name: str
    count: int = 0
    tags: tuple[str, ...] = field(default_factory=tuple)


@dataclass(frozen=True)
class Ordinary:
    name: str


def test_it_compares_hashes_and_shows_as_a_frozen_one() -> None:
    record = Record(name="a", count=1)

    assert record == Record(name="a", count=1) != Record(name="b", count=1)
    assert len({record, Record(name="a", count=1), Record(name="a", count=2)}) == 2
    assert repr(record) == "Record(name='a', count=1, tags=())"
    assert not hasattr(record, "__dict__")
    with pytest.raises(TypeError):
        Record("a")  # type: ignore[misc]


def test_replacing_makes_another_one() -> None:
    record = Record(name="a", tags=("x",))

    changed = replace(record, count=2)

    assert (changed, record) == (Record(name="a", count=2, tags=("x",)), Record(name="a", tags=("x",)))
    assert type(changed) is Record
    assert dataclasses.replace(record, count=2) == changed
    assert replace(record) is not record


def test_replacing_what_there_is_not_is_refused() -> None:
    with pytest.raises((AttributeError, TypeError)):
        replace(Record(name="a"), other=1)


def test_other_dataclasses_are_replaced_as_ever() -> None:
    assert replace(Ordinary("a"), name="b") == Ordinary("b")
    with pytest.raises(TypeError):
        replace(Ordinary("a"), other=1)
