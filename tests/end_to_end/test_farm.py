"""Farms of several engines under two workers: limits are exact, farms keep apart, and no job is lost to an engine."""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from fastlane_core.builtin.sqlite.storage import SqliteStorage
from tests.end_to_end.farm_harness import Fastlane, clear, containers_of, engines_of, witnessed
from tests.end_to_end.service import until
from tests.services.docker_engine import DockerEngine
from tests.services.tcp_proxy import TcpProxy

pytestmark = pytest.mark.services

HANDS = 4


@pytest.fixture(scope="module")
def three_engines() -> Iterator[list[DockerEngine]]:
    with engines_of(3) as engines:
        yield engines


@pytest.fixture
def engines(three_engines: list[DockerEngine]) -> Iterator[list[DockerEngine]]:
    """Three engines that run, without containers."""
    yield three_engines
    for engine in three_engines:
        clear(engine)


def farm(
    name: str, engines: Sequence[DockerEngine | TcpProxy], limit: int, match: str = "", **more: object
) -> dict[str, object]:
    hosts = [f"127.0.0.1:{engine.port}" for engine in engines]
    return {"name": name, "match": match, "hosts": hosts, "maxRunning": limit, **more}


class Gate:
    """What runs wait for until the test lets them go on: a folder that all hosts share with it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "gate"
        self._folder.mkdir()
        #: What the farm must allow, and what jobs must ask for.
        self.allow = {"binds": [str(self._folder)]}
        self.docker = {"mounts": [{"type": "bind", "source": str(self._folder), "target": "/gate"}]}

    def script(self, name: str) -> str:
        """Wait for `open(name)`, write the line `done`, and tell of it."""
        return f"until test -e /gate/{name}; do sleep 0.1; done; echo done; touch /gate/{name}-$HOSTNAME"

    def open(self, name: str) -> None:
        """Let them go on."""
        (self._folder / name).touch()

    def passed(self, name: str) -> int:
        """How many have."""
        return len(list(self._folder.glob(f"{name}-*")))


def test_two_farms_keep_their_limits_exactly_and_every_job_runs_once(
    tmp_path: Path, engines: list[DockerEngine]
) -> None:
    members = {"a": engines[:2], "b": engines[2:]}
    limits = {"a": HANDS, "b": 2}
    farms = [farm(name, members[name], limits[name], match=f"{name}-") for name in members]
    with Fastlane(tmp_path, farms) as fastlane, witnessed(fastlane.deployment, members) as witnesses:
        script = "sleep 0.5; echo done"
        answers = [fastlane.submit(f"{name}-{number % 7}", script) for number in range(100) for name in "ab"]
        executions = [fastlane.done(answer) for (answer,) in answers]

    assert all(len(attempts) == 1 and attempts[0]["log"] == "done\n" for attempts in executions)
    for name, limit in limits.items():
        witness = witnesses[name]
        # A limit that nothing comes near proves nothing.
        assert (witness.most(), limit - 1 <= witness.seen_most <= limit) == (limit, True)
        assert witness.looks > 100
        for action in ("create", "start", "die"):
            assert sorted(witness.count(action).values()) == [1] * 100


def test_a_full_farm_delays_no_other(tmp_path: Path, engines: list[DockerEngine]) -> None:
    farms = [farm("a", engines[:2], HANDS, match="a-"), farm("b", engines[2:], HANDS)]
    with Fastlane(tmp_path, farms) as fastlane:
        fastlane.done(*fastlane.submit("b-first", "true"))
        ratios: list[float] = []
        for _ in range(8):
            alone = _start_delay(fastlane)
            full = fastlane.submit("a-full", "exec sleep 600", count=HANDS + 50)
            until("farm a is full", lambda: fastlane.status()["lanes"]["docker:a"]["leased"] == HANDS)
            ratios.append(_start_delay(fastlane) / alone)
            for answer in full:
                assert fastlane.api.post(answer["jobUrl"] + "stop/", {})[0] == 200
            until("farm a is empty", lambda: "docker:a" not in _busy(fastlane))
            if ratios[-1] <= 1.1:
                break
    # A machine that is busy with other things spoils a round; a farm that waits for another spoils all.
    assert min(ratios) <= 1.1, ratios


def _busy(fastlane: Fastlane) -> set[str]:
    return {name for name, lane in fastlane.status()["lanes"].items() if lane["leased"] or lane["waiting"]}


def _start_delay(fastlane: Fastlane) -> float:
    """Median seconds from a job's acceptance to its container's start on farm b, one job at a time."""
    delays: list[float] = []
    for _ in range(15):
        ((execution,),) = (fastlane.done(answer) for answer in fastlane.submit("b-delay", "true"))
        created, started = (datetime.fromisoformat(execution[key]) for key in ("createdAt", "startedAt"))
        delays.append((started - created).total_seconds())
    return statistics.median(delays)


def test_an_engine_killed_under_its_runs_loses_and_doubles_nothing(tmp_path: Path, engines: list[DockerEngine]) -> None:
    victim, gate = engines[0], Gate(tmp_path)
    with Fastlane(tmp_path, [farm("all", engines, 30, allow=gate.allow)]) as fastlane:
        short = fastlane.submit("kill", gate.script("short"), count=10, docker=gate.docker)
        long = fastlane.submit("kill", gate.script("long"), count=10, docker=gate.docker)
        answers = short + long
        until("all run", lambda: all(fastlane.api.execution(each)["status"] == "running" for each in answers))
        ports = {each["executionId"]: fastlane.api.execution(each)["metadata"]["docker_port"] for each in answers}
        assert min(sum(ports[each["executionId"]] == victim.port for each in half) for half in (short, long)) >= 1

        victim.kill()
        gate.open("short")
        until("all of them end, also where the engine is dead", lambda: gate.passed("short") == len(short))
        until("its circuit is open", lambda: fastlane.host(victim.port)["circuit"] == "open")
        for answer in short:
            if ports[answer["executionId"]] != victim.port:
                assert len(fastlane.done(answer)) == 1
        late = fastlane.submit("late", "echo late", count=4)
        assert all(fastlane.done(each)[0]["metadata"]["docker_port"] != victim.port for each in late)
        victim.start()
        gate.open("long")

        for answer in answers:
            attempts = fastlane.done(answer)
            was_there = ports[answer["executionId"]] == victim.port
            if answer in long and was_there:
                # It was ended when its engine began again.
                assert [each["reason"] for each in attempts] == ["engine_lost", "succeeded"]
            else:
                assert [each["reason"] for each in attempts] == ["succeeded"]
            # An engine that is dead when a run ends does not keep what it wrote last, which Fastlane then says.
            assert attempts[-1]["log"] == "done\n" or (was_there and "output" in attempts[-1]["message"])
        until("its circuit is closed", lambda: fastlane.host(victim.port)["circuit"] == "closed")
        _each_execution_has_one_container(fastlane, engines)
        assert fastlane.host(victim.port)["available"]


def test_an_engine_that_hangs_loses_and_doubles_nothing_and_delays_no_other(
    tmp_path: Path, engines: list[DockerEngine]
) -> None:
    victim, gate = engines[0], Gate(tmp_path)
    farms = [farm("all", engines, 30, allow=gate.allow)]
    with Fastlane(tmp_path, farms, DOCKER_TIMEOUT_SECONDS=5.0) as fastlane:
        answers = fastlane.submit("hang", gate.script("open"), count=12, docker=gate.docker)
        until("all run", lambda: all(fastlane.api.execution(each)["status"] == "running" for each in answers))
        ports = [fastlane.api.execution(each)["metadata"]["docker_port"] for each in answers]
        assert victim.port in ports
        victim.pause()
        gate.open("open")
        try:
            for answer, port in zip(answers, ports, strict=True):
                if port != victim.port:
                    fastlane.done(answer)
            until("its circuit is open", lambda: fastlane.host(victim.port)["circuit"] == "open")
            late = [fastlane.done(answer) for answer in fastlane.submit("late", "echo late", count=6)]
            assert {attempts[-1]["metadata"]["docker_port"] for attempts in late} <= {e.port for e in engines[1:]}
        finally:
            victim.resume()
        for answer in answers:
            (execution,) = fastlane.done(answer)
            assert execution["log"] == "done\n"
        until("its circuit is closed", lambda: fastlane.host(victim.port)["circuit"] == "closed")
        _each_execution_has_one_container(fastlane, engines)


def test_runs_on_a_host_that_is_cut_off_for_a_while_are_found_again(
    tmp_path: Path, engines: list[DockerEngine]
) -> None:
    with TcpProxy(("127.0.0.1", engines[0].port)) as proxy:
        with Fastlane(tmp_path, [farm("all", [proxy, engines[1]], 30)]) as fastlane:
            script = "for i in $(seq 1 70); do echo $i; sleep 0.5; done"
            answers = fastlane.submit("cut", script, count=8)
            until("all run", lambda: all(fastlane.api.execution(each)["status"] == "running" for each in answers))
            proxy.refuse()
            cut_at = time.monotonic()
            until("its circuit is open", lambda: fastlane.host(proxy.port)["circuit"] == "open")
            others = fastlane.submit("others", "echo on", count=3)
            assert {fastlane.done(answer)[0]["metadata"]["docker_port"] for answer in others} == {engines[1].port}
            # Half a minute is long enough for whatever would give up too early.
            time.sleep(max(0.0, cut_at + 30 - time.monotonic()))
            proxy.pass_on()
            expected = "".join(f"{number}\n" for number in range(1, 71))
            for answer in answers:
                (execution,) = fastlane.done(answer)
                assert execution["log"] == expected
            until("its circuit is closed", lambda: fastlane.host(proxy.port)["circuit"] == "closed")
        _each_execution_has_one_container(fastlane, engines[:2])


def test_a_run_on_a_lost_host_is_tried_elsewhere_and_its_old_container_ended_when_the_host_is_back(
    tmp_path: Path, engines: list[DockerEngine]
) -> None:
    lost, other = engines[:2]
    with TcpProxy(("127.0.0.1", lost.port)) as proxy:
        farms = [farm("all", [proxy, other], 30)]
        with Fastlane(tmp_path, farms, ENGINE_LOST_AFTER_SECONDS=3.0) as fastlane:
            fastlane.blacklist("POST", {"host": f"127.0.0.1:{other.port}"})
            (answer,) = fastlane.submit("lost", "touch /begun; exec sleep 600", retries=0)
            until("it runs", lambda: fastlane.api.execution(answer)["status"] == "running")
            fastlane.blacklist("DELETE", {"host": f"127.0.0.1:{other.port}"})
            proxy.refuse()

            second: Any = until("it is tried again", lambda: _running_second(fastlane, answer))
            first = fastlane.attempts(answer)[0]
            assert (first["status"], first["reason"]) == ("failed", "engine_lost")
            assert second["metadata"]["docker_port"] == other.port
            (old,) = containers_of(fastlane.deployment, lost)[first["executionId"]]
            assert old["State"] == "running"
            proxy.pass_on()

            def is_ended() -> bool:
                found = containers_of(fastlane.deployment, lost).get(first["executionId"], [])
                return all(each["State"] != "running" and "/defunct-" in each["Names"][0] for each in found)

            until("the old container is ended", is_ended)
            assert fastlane.api.execution({"executionUrl": second["url"]})["status"] == "running"
            (winner,) = containers_of(fastlane.deployment, other)[second["executionId"]]
            assert winner["State"] == "running"
            assert fastlane.api.post(answer["jobUrl"] + "stop/", {})[0] == 200


def _running_second(fastlane: Fastlane, answer: Any) -> Any:
    attempts = fastlane.attempts(answer)
    return attempts[1] if len(attempts) == 2 and attempts[1]["status"] == "running" else None


def test_blacklisting_and_draining_under_load_loses_nothing(tmp_path: Path, engines: list[DockerEngine]) -> None:
    hosts = [f"127.0.0.1:{engine.port}" for engine in engines]
    gate = Gate(tmp_path)
    #: Engine by number, and the times between which it was blacklisted for sure.
    blacklisted: list[tuple[int, int, int]] = []
    farms = [farm("x", engines, 6, allow=gate.allow)]
    with Fastlane(tmp_path, farms) as fastlane, witnessed(fastlane.deployment, {"x": engines}) as witnesses:
        stop = threading.Event()

        def stir() -> None:
            turn = 0
            while not stop.wait(0.3):
                number = turn % 3
                drains = {"deadline": "1s", "then": "stop"} if turn % 2 else {}
                fastlane.blacklist("POST", {"host": hosts[number], **drains})
                begun = time.time_ns()
                stop.wait(2.5)
                blacklisted.append((number, begun, time.time_ns()))
                fastlane.blacklist("DELETE", {"host": hosts[number]})
                turn += 1

        stirring = threading.Thread(target=stir)
        stirring.start()
        try:
            (held,) = fastlane.submit("held", gate.script("held"), docker=gate.docker)
            answers = fastlane.submit("stirred", "sleep 0.5; echo done", count=60)
            until("it is drained", lambda: fastlane.attempts(held)[0]["reason"] == "drained")
            gate.open("held")
            done = [fastlane.done(answer) for answer in (held, *answers)]
        finally:
            stop.set()
            stirring.join(30)
        for attempts in done:
            assert {each["reason"] for each in attempts[:-1]} <= {"drained"}
            assert attempts[-1]["log"] == "done\n"
        _each_execution_has_one_container(fastlane, engines)
    asked = asyncio.run(_starts_asked_at(tmp_path / "fastlane.db", witnesses["x"].executions))
    for number, begun, lifted in blacklisted:
        late = {
            execution
            for (where, at, action, _), execution in witnesses["x"].events.items()
            if where == number and begun < at < lifted and action in ("create", "start") and asked[execution] > begun
        }
        # Each worker may have looked for a place just before.
        assert len(late) <= len(fastlane.workers), (number, late)


async def _starts_asked_at(database: Path, executions: Iterable[str]) -> dict[str, float]:
    """When the runner was asked to start each of them, in nanoseconds."""
    storage = SqliteStorage(database)
    await storage.open()
    try:
        found = [await storage.get_execution(each) for each in executions]
    finally:
        await storage.close()
    return {each.id: (each.start_asked_at or 0.0) * 1e9 for each in found if each is not None}


def test_jobs_wait_and_say_why_while_every_host_is_out(tmp_path: Path, engines: list[DockerEngine]) -> None:
    hosts = [f"127.0.0.1:{engine.port}" for engine in engines]
    gate = Gate(tmp_path)
    with Fastlane(tmp_path, [farm("x", engines, 6, allow=gate.allow)]) as fastlane:
        (running,) = fastlane.submit("goes-on", gate.script("open"), docker=gate.docker)
        until("it runs", lambda: fastlane.api.execution(running)["status"] == "running")
        for host in hosts:
            fastlane.blacklist("PUT", {"host": host, "then": "wait"})
        port = fastlane.api.execution(running)["metadata"]["docker_port"]
        until("its drain shows", lambda: "drain" in fastlane.host(port) and fastlane.host(port)["running"] == 1)
        waiting = fastlane.submit("waits", "echo back", count=5)
        for answer in waiting:
            until(
                "it says why", lambda answer=answer: _reason(fastlane, answer) == "every host of farm x is blacklisted"
            )
        gate.open("open")
        (execution,) = fastlane.done(running)
        assert execution["log"] == "done\n"
        until("it is drained", lambda: fastlane.host(port)["running"] == 0)
        assert {fastlane.api.execution(answer)["status"] for answer in waiting} == {"enqueued"}
        for host in hosts:
            fastlane.blacklist("DEL", {"host": host})
        for answer in waiting:
            assert fastlane.done(answer)[-1]["log"] == "back\n"


def _reason(fastlane: Fastlane, answer: Any) -> str:
    return str(fastlane.api.execution(answer)["waitingFor"])


def _each_execution_has_one_container(fastlane: Fastlane, engines: Sequence[DockerEngine]) -> None:
    found = [containers_of(fastlane.deployment, engine) for engine in engines]
    names = [execution for each in found for execution, containers in each.items() for _ in containers]
    assert len(names) == len(set(names))
