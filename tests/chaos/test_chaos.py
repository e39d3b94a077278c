"""The storm in its short form: `make chaos` has the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.deployment import Beneath
from tests.chaos.storm import storm

pytestmark = pytest.mark.services


def test_a_storm_over_sqlite_loses_and_doubles_nothing(tmp_path: Path) -> None:
    report = storm(
        tmp_path, Beneath(settings={"SQLITE_PATH": str(tmp_path / "fastlane.db")}), seed=1, jobs=48, seconds=45
    )
    print(report)
    assert not report.problems, report
