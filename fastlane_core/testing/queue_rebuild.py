"""Tests of a queue that lost its data, or never had any."""

from __future__ import annotations

from fastlane_core.contracts.queue import Lease, Queue
from fastlane_core.testing.examples import an_item
from fastlane_core.testing.queue_fixtures import LEASE_SECONDS, Advance, QueueFixtures, claim, claim_one, ids


def a_lease(execution_id: str, *, worker: str = "worker", place: str | None = None) -> Lease:
    """A lease as the reconciler makes it from a record."""
    return Lease(
        item=an_item(execution_id, task_id="a task", priority=2),
        worker=worker,
        token=f"token of {execution_id}",
        adopted=False,
        place=place,
    )


class QueueRebuildTests(QueueFixtures):
    """needs_rebuild, restore_leases, rebuilt."""

    async def test_a_new_queue_grants_nothing_until_it_was_rebuilt(self, new_queue: Queue, other: Queue) -> None:
        await new_queue.put([an_item("waiting")])

        assert await new_queue.needs_rebuild()
        assert list(await claim(new_queue)) == []

        await new_queue.rebuilt()

        assert not await new_queue.needs_rebuild()
        assert not await other.needs_rebuild()
        assert ids(await claim(other)) == ["waiting"]

    async def test_it_can_be_filled_before_it_grants(self, new_queue: Queue) -> None:
        await new_queue.restore_leases([a_lease("running")], LEASE_SECONDS)
        await new_queue.put([an_item("waiting"), an_item("running")])

        assert await new_queue.contains(["waiting", "running"]) == {"waiting", "running"}
        assert (await new_queue.renew([a_lease("running")], LEASE_SECONDS)).lost == frozenset()
        stats = (await new_queue.stats())["lane"]
        assert (stats.waiting, stats.leased) == (1, 1)

    async def test_being_rebuilt_twice_is_harmless(self, queue: Queue) -> None:
        await queue.put([an_item("waiting")])

        await queue.rebuilt()

        assert not await queue.needs_rebuild()
        assert ids(await claim(queue)) == ["waiting"]

    async def test_a_lease_that_ran_out_is_not_adopted_before(self, new_queue: Queue, advance: Advance) -> None:
        await new_queue.restore_leases([a_lease("running")], 2.0)
        await advance(2.5)
        assert list(await claim(new_queue, worker="second")) == []

        await new_queue.rebuilt()

        (adopted,) = await claim(new_queue, worker="second")
        assert (adopted.item.execution_id, adopted.adopted) == ("running", True)

    async def test_a_restored_lease_takes_its_slot_and_place(self, queue: Queue) -> None:
        await queue.restore_leases([a_lease("running", place="place")], LEASE_SECONDS)
        await queue.put([an_item("waiting")])

        assert list(await claim(queue, capacity=1)) == []
        assert await queue.loads("lane") == {"place": 1}
        lease = await claim_one(queue)
        assert await queue.assign(lease, [("place", 1)]) is None

    async def test_the_holder_goes_on_with_a_restored_lease(self, queue: Queue) -> None:
        lease = a_lease("running", place="place")
        await queue.restore_leases([lease], LEASE_SECONDS)

        assert (await queue.renew([lease], LEASE_SECONDS)).lost == frozenset()
        assert await queue.assign(lease, [("place", 1)]) == "place"
        await queue.ack(lease)

        assert await queue.stats() == {}

    async def test_a_restored_lease_without_a_holder_is_adopted(self, queue: Queue, advance: Advance) -> None:
        lease = a_lease("running", worker="dead", place="place")
        await queue.restore_leases([lease], 2.0)
        await advance(2.5)

        (adopted,) = await claim(queue, worker="alive", capacity=0)

        assert (adopted.item, adopted.adopted, adopted.place) == (lease.item, True, "place")
        assert adopted.token != lease.token
        assert (await queue.renew([lease], LEASE_SECONDS)).lost == {"running"}

    async def test_existing_leases_are_left_alone(self, queue: Queue) -> None:
        await queue.put([an_item("running")])
        lease = await claim_one(queue)
        await queue.assign(lease, [("place", 1)])

        await queue.restore_leases([a_lease("running", worker="stale", place="elsewhere")], LEASE_SECONDS)

        assert (await queue.renew([lease], LEASE_SECONDS)).lost == frozenset()
        assert await queue.loads("lane") == {"place": 1}
        assert (await queue.stats())["lane"].leased == 1

    async def test_restoring_twice_is_harmless(self, queue: Queue) -> None:
        lease = a_lease("running")
        await queue.restore_leases([lease, lease], LEASE_SECONDS)
        await queue.restore_leases([lease], LEASE_SECONDS)
        await queue.restore_leases([], LEASE_SECONDS)

        assert (await queue.stats())["lane"].leased == 1
