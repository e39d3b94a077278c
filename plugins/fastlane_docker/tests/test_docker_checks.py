"""What `fastlane doctor` is told of engines: who answers, what the clocks say, and what is not in use."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import pytest

from fastlane_core.hookspecs import CheckContext, Finding
from fastlane_core.testing.runner_context import GivenSettings
from fastlane_docker.plugin import fastlane_checks
from fastlane_docker.settings import DockerSettings
from tests.services.fixtures import SharedEngine
from tests.services.ports import free_port


async def check(
    *hosts: str, runners: Sequence[str] = ("docker",), clock: Callable[[], float] = time.time
) -> Sequence[Finding]:
    settings = DockerSettings.model_validate({"docker_hosts": [{"match": "", "hosts": list(hosts), "maxRunning": 1}]})
    context = CheckContext(
        settings=GivenSettings(settings),
        deployment_id="d",
        api_bind=None,
        clock=clock,
        storage="sqlite",
        queue="sqlite",
        runners=runners,
    )
    return await fastlane_checks(context)


async def test_an_engine_that_is_out_of_reach_is_a_problem_with_its_address() -> None:
    host = f"127.0.0.1:{free_port()}"

    (finding,) = await check(host)

    assert (finding.level, finding.subject) == ("problem", f"Docker host {host}")
    assert "cannot be reached" in finding.message
    assert "DOCKER_HOSTS" in finding.advice


async def test_engines_that_are_not_in_use_are_not_asked() -> None:
    assert await check(f"127.0.0.1:{free_port()}", runners=["process"]) == []


@pytest.mark.services
async def test_an_engine_that_answers_is_told_with_its_version(docker_engine: SharedEngine) -> None:
    (finding,) = await check(docker_engine.url)

    assert finding.level == "ok"
    assert finding.message.startswith("answers: Docker ")


@pytest.mark.services
@pytest.mark.parametrize(("ahead", "how"), [(100.0, "behind"), (-100.0, "ahead of")])
async def test_an_engine_whose_clock_is_wrong_is_told(docker_engine: SharedEngine, ahead: float, how: str) -> None:
    ok, wrong = await check(docker_engine.url, clock=lambda: datetime.now(UTC).timestamp() + ahead)

    assert (ok.level, wrong.level) == ("ok", "warning")
    assert f"s {how} this machine's" in wrong.message
