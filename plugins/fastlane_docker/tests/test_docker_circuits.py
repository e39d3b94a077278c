"""Circuits: opened by failures of any worker, known to all, closed by a probe of one."""

from __future__ import annotations

import pytest

from fastlane_core.contracts.storage import Storage
from fastlane_core.errors import StorageUnavailable
from fastlane_core.models import Event, EventKind
from fastlane_core.testing.runner_context import runner_context
from fastlane_docker.engines.engine import Kind
from fastlane_docker.farm.circuits import Circuit, Circuits

HOST = "docker1:2375"


class Workers:
    """Circuits of as many workers as a test likes, over one storage, one clock and one list of events."""

    def __init__(self, storage: Storage) -> None:
        self.now = 1000.0
        self.events: list[Event] = []
        self._storage = storage

    def __call__(self) -> Circuits:
        context = runner_context(
            deployment_id="d", clock=lambda: self.now, storage=self._storage, emit=self.events.append
        )
        return Circuits(context, max_fails=5, reset_seconds=60.0)

    def told(self) -> list[str]:
        assert {(event.kind, event.place) for event in self.events} <= {(EventKind.CIRCUIT_CHANGED, HOST)}
        return [event.message.partition(" is ")[2].partition(":")[0] for event in self.events]


@pytest.fixture
def workers(storage: Storage) -> Workers:
    return Workers(storage)


def fail(circuits: Circuits, times: int, kind: Kind = Kind.PING) -> None:
    for _ in range(times):
        circuits.failed(HOST, kind, "refused")


async def opened(workers: Workers, kind: Kind = Kind.PING) -> Circuits:
    circuits = workers()
    fail(circuits, 5, kind)
    await circuits.refresh()
    return circuits


async def test_five_failures_in_a_row_open_it_for_every_worker(workers: Workers) -> None:
    one, other = workers(), workers()
    fail(one, 4)
    one.worked(HOST, Kind.PING)
    fail(one, 4)
    assert one.of(HOST) is None

    fail(one, 1)

    found = one.of(HOST)
    assert found is not None
    assert (found.circuit, found.why) == (Circuit.OPEN, "refused")
    assert one.news.is_set()
    await one.refresh()
    await other.refresh()
    assert other.of(HOST) == one.of(HOST)
    assert workers.told() == ["open"]


async def test_what_works_says_nothing_of_what_fails(workers: Workers) -> None:
    circuits = workers()
    for _ in range(5):
        assert circuits.of(HOST) is None
        fail(circuits, 1, Kind.START)
        circuits.worked(HOST, Kind.PING)
        circuits.worked(HOST, Kind.IMAGE)
        circuits.worked(HOST, Kind.OTHER)

    assert circuits.of(HOST) is not None


async def test_a_ping_closes_what_starts_have_opened_on_probation(workers: Workers) -> None:
    one = await opened(workers, Kind.START)
    other, third = workers(), workers()
    await other.refresh()
    await third.refresh()
    workers.now += 60
    assert await one.take_probe(HOST)
    await one.probed(HOST, "")
    await other.refresh()
    await third.refresh()
    assert (one.of(HOST), other.of(HOST), third.of(HOST)) == (None, None, None)

    fail(other, 4)
    third.worked(HOST, Kind.START)
    fail(third, 4, Kind.START)
    assert (other.of(HOST), third.of(HOST)) == (None, None)
    fail(other, 1, Kind.START)

    assert other.of(HOST) is not None


async def test_several_workers_that_open_it_at_once_tell_it_once(workers: Workers) -> None:
    crowd = [workers() for _ in range(3)]
    for each in crowd:
        fail(each, 5)
    for each in crowd:
        await each.refresh()

    assert len({str(each.of(HOST)) for each in crowd}) == 1
    assert workers.told() == ["open"]


async def test_one_worker_probes_after_the_reset_time_and_closes_it_for_all(workers: Workers) -> None:
    one = await opened(workers)
    other = workers()
    await other.refresh()
    workers.now += 59
    assert not await other.take_probe(HOST)
    workers.now += 1

    assert await other.take_probe(HOST)
    assert not await one.take_probe(HOST)
    await one.refresh()
    assert not await one.take_probe(HOST)
    found = one.of(HOST)
    assert found is not None
    assert found.circuit is Circuit.HALF_OPEN

    await other.probed(HOST, "")
    await one.refresh()
    assert (one.of(HOST), other.of(HOST)) == (None, None)
    assert workers.told() == ["open", "half-open", "closed"]
    fail(one, 4)
    assert one.of(HOST) is None


async def test_a_probe_without_answer_opens_it_for_another_reset_time(workers: Workers) -> None:
    one = await opened(workers)
    workers.now += 60
    assert await one.take_probe(HOST)
    await one.probed(HOST, "still refused")
    workers.now += 59
    assert not await one.take_probe(HOST)
    workers.now += 1
    assert await one.take_probe(HOST)
    assert workers.told() == ["open", "half-open", "open", "half-open"]


async def test_a_probe_whose_worker_died_is_made_by_another(workers: Workers) -> None:
    dead = await opened(workers)
    workers.now += 60
    assert await dead.take_probe(HOST)

    other = workers()
    await other.refresh()
    workers.now += 29
    assert not await other.take_probe(HOST)
    workers.now += 1
    assert await other.take_probe(HOST)


async def test_it_stays_open_here_while_the_storage_is_out_of_reach(workers: Workers, storage: Storage) -> None:
    circuits = workers()
    fail(circuits, 5)
    await storage.close()

    with pytest.raises(StorageUnavailable):
        await circuits.refresh()

    assert circuits.of(HOST) is not None
    assert not await circuits.take_probe(HOST)
    await storage.open()
    await circuits.refresh()
    assert workers.told() == ["open"]
