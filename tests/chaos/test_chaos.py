"""The storm in its short form: `make chaos` has the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.servers import on_mongo_and_redis, on_sqlite
from tests.chaos.storm import storm

pytestmark = pytest.mark.services


def test_a_storm_over_sqlite_loses_and_doubles_nothing(tmp_path: Path) -> None:
    report = storm(tmp_path, on_sqlite(tmp_path), seed=1, jobs=48, seconds=40)

    print(report)
    assert not report.problems, report
    assert not report.undone, report


def test_a_storm_over_mongodb_and_redis_loses_and_doubles_nothing(tmp_path: Path) -> None:
    with on_mongo_and_redis(tmp_path) as beneath:
        report = storm(tmp_path, beneath, seed=1, jobs=48, seconds=60)

    print(report)
    assert not report.problems, report
    assert not report.undone, report
