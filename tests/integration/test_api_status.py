"""What operators look at: health, status, what executions wait for, and stores that are gone."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping

import pytest

from fastlane_core.api import status
from fastlane_core.contracts.queue import LaneStats
from fastlane_core.errors import QueueUnavailable
from fastlane_core.models import Status
from tests.integration.api_harness import DEADLINE, LANE, Api


async def test_a_lane_that_is_out_of_reach_in_the_queue_is_marked_and_the_others_are_told(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stats() -> Mapping[str, LaneStats]:
        return {LANE: LaneStats(reachable=False), "fake:other": LaneStats(waiting=3)}

    execution = await api.submit()
    report = {"worker": "w", "at": time.time(), "lanes": {LANE: {"capacity": 2, "places": {"h:1": 2}, "reason": ""}}}
    await api.storage.put_state("workers", "w", report, revision=None)
    monkeypatch.setattr(api.queue, "stats", stats)

    lanes = (await api.http.get("/status/")).json()["lanes"]
    told = (await api.http.get(f"/tasks/t/jobs/{execution.job_id}/executions/{execution.id}")).json()

    assert {name: lane["reachable"] for name, lane in lanes.items()} == {LANE: False, "fake:other": True}
    assert (lanes["fake:other"]["waiting"], lanes[LANE]["waiting"]) == (3, None)
    assert told["execution"]["waitingFor"] == f"the queue, in which the lane {LANE} is out of reach"


async def test_waiting_executions_say_what_for(api: Api) -> None:
    async def waiting_for(execution_id: str, job: str) -> str:
        body = (await api.http.get(f"/tasks/t/jobs/{job}/executions/{execution_id}")).json()
        return str(body["execution"]["waitingFor"])

    execution = await api.submit()
    asked = (execution.id, execution.job_id)
    report = {"worker": "w", "at": time.time(), "lanes": {LANE: {"capacity": 2, "places": {"h:1": 2}, "reason": ""}}}

    assert await waiting_for(*asked) == f"a worker that serves the lane {LANE}: none is running"
    await api.storage.put_state("workers", "w", {**report, "at": time.time() - 61}, revision=None)
    assert await waiting_for(*asked) == f"a worker that serves the lane {LANE}: none is running"

    no_place = {LANE: {"capacity": 2, "places": {}, "reason": "h:1 does not answer"}}
    await api.storage.put_state("workers", "w", {**report, "lanes": no_place}, revision=None)
    assert await waiting_for(*asked) == "h:1 does not answer"

    await api.storage.put_state("workers", "w", report, revision=None)
    assert await waiting_for(*asked) == f"its turn in the lane {LANE}: 0 of 2 slots are taken"

    for _ in range(2):
        await api.submit()
    leases = await api.queue.claim(LANE, worker="w", capacity=2, limit=2, lease_seconds=60)
    assert len(leases) == 2
    last = await api.submit()
    assert await waiting_for(last.id, last.job_id) == f"a free slot in the lane {LANE}: 2 of 2 are taken"

    await api.change(last, waiting_for="its engine, which is out of reach")
    assert await waiting_for(last.id, last.job_id) == "its engine, which is out of reach"
    await api.run(await api.change(last, waiting_for=None, status=Status.PULLING))
    assert await waiting_for(last.id, last.job_id) == "None"


async def test_health_and_status_have_the_shape_that_clients_know(api: Api) -> None:
    for path in ("/", "/healthcheck", "/healthcheck/"):
        body = (await api.http.get(path)).json()
        assert body == {"redis": True, "mongo": True, "queue": True, "storage": True, "errors": []}
    hosts = [
        {"host": "b", "port": 1, "available": False, "blacklisted": True, "circuit": "closed", "error": "blacklisted"},
        {"host": "z", "port": 1, "available": True, "blacklisted": False, "circuit": "closed", "error": None},
    ]
    report = {"worker": "w", "at": time.time(), "lanes": {}, "hosts": hosts, "running": 1}
    await api.storage.put_state("workers", "w", report, revision=None)
    older = {**report, "worker": "v", "at": time.time() - 5, "hosts": [{**hosts[0], "available": True}]}
    await api.storage.put_state("workers", "v", older, revision=None)
    running = await api.run(await api.submit())
    waiting = await api.submit()
    await api.submit(start_at=4102444800.0)
    body = (await api.http.get("/status")).json()
    assert body["hosts"] == [{**host, "running": 0} for host in hosts[::-1]]
    assert body["containers"] == {
        "running": [{"host": "engine-1.example", "port": 2375, "id": "c0ffee", "executionId": running.id}]
    }
    assert waiting.status is Status.ENQUEUED
    assert body["queues"] == {
        "jobs": {"length": 2},
        "monitor": {"length": 0},
        "webhooks": {"length": 0},
        "notify": {"length": 0},
        "scheduled": {
            "length": 1,
            "nextTimeStamp": 4102444800.0,
            "nextHumanReadableDate": "2100-01-01T00:00:00.000000",
        },
    }
    assert body["tasks"] == {"count": 1}
    assert body["jobs"] == {"count": 3, "scheduled": []}
    assert body["fastlane"] == {"version": "1.2.3", "pid": os.getpid(), "executor": "docker"}
    assert body["lanes"][LANE]["capacity"] == 2
    assert {each["worker"] for each in body["workers"]} == {"w", "v"}


async def test_storage_that_is_gone_is_told_and_comes_back_later(api: Api) -> None:
    await api.storage.close()
    answer = await api.http.get("/tasks/")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2")
    assert answer.json()["operation"] == "get_tasks"
    health = await api.http.get("/healthcheck")
    assert health.status_code == 500
    (error,) = health.json()["errors"]
    assert (error["source"], error["part"]) == ("mongo", "storage")
    assert (health.json()["mongo"], health.json()["redis"]) == (False, True)


async def test_job_is_accepted_while_the_queue_is_gone(api: Api) -> None:
    await api.queue.close()
    with pytest.raises(QueueUnavailable):
        await api.queue.stats()
    answer = await api.http.post("/tasks/t/", json={"image": "i", "command": "c"})
    assert answer.status_code == 200
    assert await api.storage.get_execution(answer.json()["executionId"]) is not None
    assert (await api.http.get(answer.json()["executionUrl"])).status_code == 200


async def test_status_tells_all_that_it_can_while_the_queue_is_gone(api: Api) -> None:
    report = {"worker": "w", "at": time.time(), "lanes": {}, "hosts": [{"host": "h", "port": 1, "available": True}]}
    await api.storage.put_state("workers", "w", report, revision=None)
    await api.run(await api.submit())
    await api.queue.close()

    answer = await api.http.get("/status/")
    body = answer.json()

    assert answer.status_code == 200, body
    assert [body["queues"][name]["length"] for name in ("jobs", "monitor", "scheduled")] == [None] * 3
    assert body["lanes"][LANE] == {
        **dict.fromkeys(("waiting", "delayed", "held", "leased", "places")),
        "capacity": 2,
        "reachable": False,
    }
    assert (body["hosts"][0]["host"], body["hosts"][0]["running"]) == ("h", None)
    assert len(body["containers"]["running"]) == 1
    assert (body["jobs"]["count"], [each["worker"] for each in body["workers"]]) == (1, ["w"])
    assert (await api.http.get("/healthcheck/")).status_code == 500


async def test_status_does_not_wait_long_for_a_queue_that_hangs(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def stats() -> Mapping[str, LaneStats]:
        await asyncio.Event().wait()
        return {}

    monkeypatch.setattr(api.queue, "stats", stats)
    monkeypatch.setattr(status, "_STATS_TIMEOUT", 0.01)

    async with asyncio.timeout(DEADLINE):
        body = (await api.http.get("/status/")).json()

    assert (body["queues"]["jobs"]["length"], body["lanes"][LANE]["reachable"]) == (None, False)
