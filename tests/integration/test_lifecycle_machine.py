"""Whatever is asked for, whoever dies and whenever: every job comes to exactly the end that it must.

The steps are drawn, the servers are real, and time is simulated.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.integration.lifecycle_machine import REQUESTS, RUN_POINTS, LifecycleMachine
from tests.integration.simulated_processes import Fate
from tests.integration.simulated_servers import RealTime, Servers, SqliteServers
from tests.integration.simulated_services import MongoAndRedis, simulate_clock
from tests.services.redis_server import RedisServer

#: The same steps with every run.
PROFILE = settings(
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture
def real_time() -> Iterator[RealTime]:
    made = RealTime()
    yield made
    made.close()


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[SqliteServers]:
    """In memory where the machine has a folder for that: what a disk keeps is tested elsewhere."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as folder:
        yield SqliteServers(Path(folder))


@pytest.fixture
def mongo_and_redis(
    mongo_url: str, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MongoAndRedis]:
    simulate_clock(monkeypatch)
    made = MongoAndRedis(mongo_url, redis_server.url)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    """No log: it would be as long as all others together."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("critical"))
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def run(servers: Servers, real_time: RealTime, examples: int) -> None:
    run_state_machine_as_test(
        lambda: LifecycleMachine(servers, real_time), settings=settings(PROFILE, max_examples=examples)
    )


def test_every_job_comes_to_its_end_over_sqlite(sqlite: SqliteServers, real_time: RealTime) -> None:
    run(sqlite, real_time, 45)


@pytest.mark.parametrize("fate", Fate)
@pytest.mark.parametrize("meanwhile", REQUESTS)
def test_a_failing_run_can_be_interrupted_between_any_two_steps(
    sqlite: SqliteServers, real_time: RealTime, fate: Fate, meanwhile: str
) -> None:
    for points in (RUN_POINTS[::2], RUN_POINTS[1::2]):
        machine = LifecycleMachine(sqlite, real_time)
        machine.begin(seed=0, orders=[])
        for point in points:
            work = {"command": "exit 3", "retries": 1}
            machine.interrupt(number=0, work=work, fate=fate, where=point, meanwhile=meanwhile, picked=0)
            machine.holds()
        machine.teardown()


@pytest.mark.services
def test_every_job_comes_to_its_end_over_redis_and_mongodb(mongo_and_redis: MongoAndRedis, real_time: RealTime) -> None:
    run(mongo_and_redis, real_time, 15)


@pytest.mark.long
def test_every_job_comes_to_its_end_over_sqlite_however_many(sqlite: SqliteServers, real_time: RealTime) -> None:
    run(sqlite, real_time, 1000)


@pytest.mark.long
@pytest.mark.services
def test_every_job_comes_to_its_end_over_redis_and_mongodb_however_many(
    mongo_and_redis: MongoAndRedis, real_time: RealTime
) -> None:
    run(mongo_and_redis, real_time, 150)
