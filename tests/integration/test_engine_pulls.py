"""Executions whose image is being pulled: what their record says meanwhile, and what ends the wait."""

from __future__ import annotations

import asyncio
from functools import partial

from fastlane_core.engine.preparing import prepare
from fastlane_core.errors import EngineUnavailable, PullFailed
from fastlane_core.models import EventKind, Execution, Progress, Reason, RunRequest, RunSpec, Status
from fastlane_core.testing.fake_engine import FakeEngine
from fastlane_core.testing.fake_runner import FakeRunner
from tests.integration.engine_harness import Deployment, until


async def _says(fastlane: Deployment, execution: Execution, message: str) -> bool:
    now = await fastlane.now(execution)
    return (now.status, now.waiting_for) == (Status.PULLING, message)


async def test_record_says_how_far_the_pull_is_until_it_runs(fastlane: Deployment) -> None:
    async with fastlane.worker():
        with fastlane.engine.pulling("image") as pull:
            execution = await fastlane.submit("echo hi")
            await until(lambda: pull.waiting == 1)
            for message in ("pulling image: 1.0 of 4.0 MiB", "pulling image: 3.0 of 4.0 MiB"):
                pull.tell(message)
                await until(partial(_says, fastlane, execution, message))
            assert not fastlane.engine.starts
        ended = await fastlane.ended(execution)
    assert (ended.status, ended.waiting_for) == (Status.DONE, None)
    told = [each.message for each in fastlane.events if each.kind is EventKind.EXECUTION_PROGRESS]
    assert told == ["pulling image: 1.0 of 4.0 MiB", "pulling image: 3.0 of 4.0 MiB", "pulled image"]


async def test_a_burst_of_progress_is_noted_once_with_its_newest_word() -> None:
    engine = FakeEngine()
    spec = RunSpec(image="image", command="true", timeout=60)
    request = RunRequest(
        execution_id="e",
        job_id="j",
        task_id="t",
        spec=spec,
        argv=("true",),
        lane="fake:default",
        place="fake-host",
        fence=1,
        deployment_id="d",
        max_log_bytes=1,
    )
    noted: list[str] = []
    heard: list[Progress] = []

    async def note(message: str) -> None:
        noted.append(message)

    with engine.pulling("image") as pull:
        runner = FakeRunner(engine, deployment_id="d")
        preparing = asyncio.create_task(
            prepare(runner, request, stop_wanted=asyncio.Event(), progressed=heard.append, note=note)
        )
        await until(lambda: pull.waiting == 1)
        for burst in (1, 2):
            for step in range(100):
                pull.tell(f"{burst}.{step}")
            await until(partial(noted.__contains__, f"{burst}.99"))
    await preparing

    assert noted == ["1.99", "2.99"]
    assert len(heard) == 201


async def test_stopping_a_job_whose_image_is_pulled_ends_it_at_once(fastlane: Deployment) -> None:
    async with fastlane.worker():
        with fastlane.engine.pulling("image") as pull:
            execution = await fastlane.submit("true", retries=3)
            await until(lambda: pull.waiting == 1)
            await fastlane.stop_job(execution)
            ended = await fastlane.ended(execution)
            assert pull.waiting == 0
    assert (ended.status, ended.waiting_for) == (Status.STOPPED, None)
    assert not fastlane.engine.starts


async def test_a_registry_in_trouble_uses_up_a_retry_and_is_no_trouble_of_the_place(fastlane: Deployment) -> None:
    for _ in range(2):
        fastlane.engine.fail_next_pull(PullFailed("the registry is out of reach"))
    async with fastlane.worker():
        first = await fastlane.submit("true", retries=1)
        await until(lambda: _tried(fastlane, first, 2))
    attempts = await fastlane.attempts(first)
    assert [(each.status, each.reason, each.message) for each in attempts] == [
        (Status.FAILED, Reason.PULL_FAILED, "the registry is out of reach")
    ] * 2
    assert not [event for event in fastlane.events if event.kind is EventKind.ENGINE_TROUBLE]


async def test_what_was_pulled_for_a_place_that_takes_nothing_new_by_then_runs_on_another(fastlane: Deployment) -> None:
    async with fastlane.worker():
        with fastlane.engine.pulling("big") as pull:
            execution = await fastlane.submit("true", image="big")
            await until(lambda: pull.waiting == 1)
            assert (await fastlane.now(execution)).place == "host"
            fastlane.engine.cordoned.add("host")
            fastlane.engine.places["other"] = 50
        ended = await fastlane.ended(execution)
    assert (ended.status, ended.place) == (Status.DONE, "other")
    assert fastlane.engine.starts == {execution.id: 1}
    assert fastlane.engine.run(execution.id).request.place == "other"


async def test_who_adopts_a_pull_on_a_place_that_takes_nothing_new_by_then_pulls_on_another(
    fastlane: Deployment,
) -> None:
    with fastlane.engine.pulling("big") as pull:
        async with fastlane.worker("first"):
            execution = await fastlane.submit("true", image="big")
            await until(lambda: pull.waiting == 1)
        fastlane.engine.cordoned.add("host")
        fastlane.engine.places["other"] = 50
        async with fastlane.worker("second"):
            await until(lambda: _pulls_on(fastlane, execution, "other"))
            await until(lambda: pull.waiting == 1)
            pull.end()
            ended = await fastlane.ended(execution)
    assert (ended.status, ended.place, ended.worker) == (Status.DONE, "other", "second")


async def test_an_adopted_pull_of_a_lane_that_is_not_offered_any_more_moves_to_another(fastlane: Deployment) -> None:
    with fastlane.engine.pulling("big") as pull:
        async with fastlane.worker("first"):
            execution = await fastlane.submit("true", image="big")
            await until(lambda: pull.waiting == 1)
        fastlane.lanes = {"fake:renamed": 5}
        async with fastlane.worker("second"):
            await until(lambda: pull.waiting == 1)
            pull.end()
            ended = await fastlane.ended(execution)
    assert (ended.status, ended.lane) == (Status.DONE, "fake:renamed")


async def _pulls_on(fastlane: Deployment, execution: Execution, place: str) -> bool:
    stored = await fastlane.now(execution)
    return (stored.status, stored.place) == (Status.PULLING, place)


async def test_an_engine_that_goes_away_during_the_pull_uses_up_nothing(fastlane: Deployment) -> None:
    fastlane.engine.fail_next_pull(EngineUnavailable("the engine went away"))
    async with fastlane.worker():
        ended = await fastlane.ended(await fastlane.submit("true"))
    assert (ended.status, ended.attempt) == (Status.DONE, 1)
    assert [event for event in fastlane.events if event.kind is EventKind.ENGINE_TROUBLE]


async def _tried(fastlane: Deployment, first: Execution, times: int) -> bool:
    attempts = await fastlane.attempts(first)
    return len(attempts) == times and all(each.status.is_final for each in attempts)
