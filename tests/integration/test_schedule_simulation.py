"""Ten years of schedules in six time zones, fired by two workers that are killed at random: each tick exactly once."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from fastlane_core.engine.faultpoints import FaultPoint
from fastlane_core.engine.scheduling import Scheduler
from fastlane_core.engine.submission import JobOrder, JobSubmission
from fastlane_core.models import Job, Misfire, RunSpec, Schedule
from tests.integration.engine_harness import Deployment, deployment

#: Clocks changed by an hour in spring and autumn, by half an hour, at midnight, twice around Ramadan, and never.
ZONES = (
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "America/Santiago",
    "Africa/Casablanca",
    "Asia/Kolkata",
)
BEGIN = datetime(2020, 1, 1, tzinfo=UTC).timestamp()
END = datetime(2030, 1, 1, tzinfo=UTC).timestamp()
#: All changes of these clocks are at a multiple of it.
QUARTER = 900
DAY = 86_400.0
#: A worker that is there for its work is killed at one of so many steps.
STEPS_PER_KILL = 8

NAMED, EVERY_HOUR = "30 2 * * *", "45 * 29 3,10 *"


class Killed(BaseException):
    """The process is gone."""


def expected_ticks(zone: str) -> dict[str, list[float]]:
    """What the two expressions must fire, read off the zone's clock a quarter of an hour at a time."""
    info = ZoneInfo(zone)
    first_of_day: dict[object, float] = {}
    every_hour: list[float] = []
    for at in range(int(BEGIN - DAY), int(END) + 1, QUARTER):
        local = datetime.fromtimestamp(at, info)
        if (local.hour, local.minute) >= (2, 30):
            first_of_day.setdefault(local.date(), float(at))
        if local.minute == 45 and (local.month, local.day) in ((3, 29), (10, 29)):
            every_hour.append(float(at))
    named = sorted(first_of_day.values())
    return {NAMED: [at for at in named if at > BEGIN], EVERY_HOUR: [at for at in every_hour if at > BEGIN]}


class Simulation:
    """Two workers that come, fire and die as chance will have it, and a clock that leaps."""

    def __init__(self, fastlane: Deployment, seed: int) -> None:
        self._fastlane = fastlane
        self._chance = random.Random(seed)
        self.kills: Counter[str] = Counter()

    async def run(self) -> None:
        """From `BEGIN` to `END`."""
        while (now := self._fastlane.clock()) < END:
            leap = self._chance.choice([60.0, 3600.0, DAY, 20 * DAY]) * self._chance.random()
            self._fastlane.clock.advance(min(leap, END - now))
            await asyncio.gather(*(self._life(name) for name in ("one", "two")))
        while await Scheduler(self._fastlane.context("last")).fire(until=END):
            pass

    async def _life(self, name: str) -> None:
        """One look at what is due, by a worker that may die within it at any step or at any moment between two."""
        reach = self._killer()
        task = asyncio.create_task(
            Scheduler(self._fastlane.context(name, reach=reach)).fire(until=self._fastlane.clock())
        )
        if self._chance.randrange(STEPS_PER_KILL) == 0:
            await asyncio.wait({task}, timeout=self._chance.random() * 0.004)
            if task.cancel():
                self.kills["between"] += 1
        (died,) = await asyncio.gather(task, return_exceptions=True)
        if isinstance(died, Exception):
            raise died

    def _killer(self) -> Callable[[FaultPoint], None]:
        def reach(point: FaultPoint) -> None:
            if self._chance.randrange(STEPS_PER_KILL) == 0:
                self.kills[point] += 1
                raise Killed

        return reach


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.long)])
async def test_ten_years_of_ticks_fire_exactly_once_each_whoever_is_killed(tmp_path: Path, seed: int) -> None:
    expected: dict[str, list[float]] = {}
    async with deployment(tmp_path) as fastlane:
        fastlane.clock.advance(BEGIN - fastlane.clock())
        await fastlane.queue.rebuilt()
        jobs = [(await scheduled(fastlane, cron, zone)) for zone in ZONES for cron in (NAMED, EVERY_HOUR)]
        for zone in ZONES:
            expected |= {f"{cron} {zone}": ticks for cron, ticks in expected_ticks(zone).items()}
        simulation = Simulation(fastlane, seed)

        await simulation.run()

        fired = {job.metadata["name"]: await ticks_of(fastlane, job) for job in jobs}
        waiting = sum(each.waiting + each.delayed for each in (await fastlane.queue.stats()).values())
    assert fired == expected
    assert waiting == sum(len(each) for each in expected.values())
    assert set(simulation.kills) == {"between", *(point for point in FaultPoint if point.startswith("ticks_"))}
    assert all(count >= 10 for count in simulation.kills.values()), simulation.kills


async def scheduled(fastlane: Deployment, cron: str, zone: str) -> Job:
    """A job that makes up for every tick that nobody was there for."""
    submission = JobSubmission(fastlane.storage, fastlane.queue, fastlane.routing(), fastlane.clock)
    schedule = Schedule(cron=cron, timezone=zone, misfire=Misfire.RUN_ALL, misfire_cap=1000)
    spec = RunSpec(image="image", command="c", timeout=60.0)
    order = JobOrder(task_id="t", spec=spec, schedule=schedule, metadata={"name": f"{cron} {zone}"})
    return (await submission.submit(order)).job


async def ticks_of(fastlane: Deployment, job: Job) -> Sequence[float]:
    """The ticks that have an execution, in order, each as often as it has."""
    ticks: list[float] = []
    cursor: str | None = None
    while True:
        page = await fastlane.storage.list_executions(job.id, task_id=job.task_id, cursor=cursor, limit=1000)
        ticks += [each.tick or 0.0 for each in page.items]
        cursor = page.cursor
        if cursor is None:
            return sorted(ticks)
