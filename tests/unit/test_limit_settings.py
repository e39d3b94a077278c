"""TASK_LIMITS and MAX_RUNNING: what they mean, and what is refused at the start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastlane_core.app import open_application
from fastlane_core.errors import SettingsError

QUIET = {"RUNNERS": ["process"]}


def settings_of(folder: Path, **more: object) -> dict[str, object]:
    return {**QUIET, "SQLITE_PATH": str(folder / "fastlane.db"), "PROCESS_FOLDER": str(folder / "runs"), **more}


@pytest.mark.parametrize("as_json", [False, True])
async def test_the_strictest_limit_whose_pattern_matches_the_start_of_a_task_holds(
    tmp_path: Path, as_json: bool
) -> None:
    limits = [{"match": "re(ports|views)", "maxRunning": 5}, {"match": ".*-slow$", "maxRunning": 2}]
    told = json.dumps(limits) if as_json else limits

    async with open_application(overrides=settings_of(tmp_path, TASK_LIMITS=told)) as application:
        limit = application.routing.task_limit
        assert [limit(task) for task in ("reports", "reviews-slow", "my reports", "other-slow", "slow")] == [
            5,
            2,
            None,
            2,
            None,
        ]


@pytest.mark.parametrize(
    "wrong",
    [
        [{"match": "(", "maxRunning": 1}],
        [{"match": "a", "maxRunning": 0}],
        [{"match": "a"}],
        [{"match": "a", "maxrunning": 1}],
    ],
)
async def test_limits_that_make_no_sense_are_refused(tmp_path: Path, wrong: object) -> None:
    with pytest.raises(SettingsError, match="TASK_LIMITS"):
        async with open_application(overrides=settings_of(tmp_path, TASK_LIMITS=wrong)):
            pass


async def test_a_limit_over_everything_is_refused_where_the_queue_cannot_count(tmp_path: Path) -> None:
    pytest.importorskip("redis")
    cluster = {"QUEUE": "redis", "REDIS_URL": "redis+cluster://127.0.0.1:1"}

    with pytest.raises(SettingsError, match=r"MAX_RUNNING.*several servers"):
        async with open_application(overrides=settings_of(tmp_path, MAX_RUNNING=3, **cluster)):
            pass
