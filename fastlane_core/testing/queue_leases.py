"""Tests of a queue's leases: renewal, expiry, adoption, fencing by token."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

import pytest

from fastlane_core.contracts.queue import Cancelled, Lease, Queue
from fastlane_core.errors import LeaseLost
from fastlane_core.testing.examples import an_item
from fastlane_core.testing.queue_fixtures import (
    LEASE_SECONDS,
    Advance,
    QueueFixtures,
    claim,
    claim_one,
    ids,
)

#: Seconds that a short lease lasts, and after which it has run out.
_SHORT = 2.0
_OVER = 2.5


class QueueLeaseTests(QueueFixtures):
    """Renew, ack, release, hand over; and what happens when a lease runs out."""

    # Expiry and adoption

    async def test_a_lease_that_ran_out_is_adopted(self, queue: Queue, other: Queue, advance: Advance) -> None:
        await queue.put([an_item("run")])
        (lost,) = await claim(queue, worker="first", lease_seconds=_SHORT)
        assert list(await claim(other, worker="second")) == []

        await advance(_OVER)

        (adopted,) = await claim(other, worker="second")
        assert (adopted.item, adopted.worker, adopted.adopted) == (lost.item, "second", True)
        assert adopted.token != lost.token
        assert not adopted.handed_over
        assert list(await claim(queue, worker="third")) == []

    async def test_a_lease_that_ran_out_keeps_its_slot(self, queue: Queue, advance: Advance) -> None:
        await queue.put([an_item("running"), an_item("waiting", priority=9)])
        await queue.cancel("waiting")
        await claim(queue, capacity=1, lease_seconds=_SHORT)
        await queue.put([an_item("waiting", priority=9)])
        await advance(_OVER)

        assert (await queue.stats())["lane"].leased == 1
        (adopted,) = await claim(queue, worker="second", capacity=1)
        assert (adopted.item.execution_id, adopted.adopted) == ("running", True)
        assert list(await claim(queue, capacity=1)) == []

    async def test_adoption_needs_no_free_slot(self, queue: Queue, advance: Advance) -> None:
        await queue.put([an_item("running")])
        await claim(queue, lease_seconds=_SHORT)
        await advance(_OVER)

        assert ids(await claim(queue, worker="second", capacity=0)) == ["running"]

    async def test_adoption_comes_before_new_items(self, queue: Queue, advance: Advance) -> None:
        await queue.put([an_item("running")])
        await claim(queue, lease_seconds=_SHORT)
        await queue.put([an_item("urgent", priority=9)])
        await advance(_OVER)

        leases = await claim(queue, worker="second", limit=1)
        assert [(lease.item.execution_id, lease.adopted) for lease in leases] == [("running", True)]
        assert ids(await claim(queue, worker="second", limit=1)) == ["urgent"]

    async def test_one_claim_gives_adopted_and_new_ones_within_limit_and_capacity(
        self, queue: Queue, advance: Advance
    ) -> None:
        await queue.put([an_item(f"old {number}") for number in range(2)])
        await claim(queue, lease_seconds=_SHORT)
        await queue.put([an_item(f"new {number}") for number in range(5)])
        await advance(_OVER)

        leases = await claim(queue, worker="second", capacity=4, limit=10)

        assert sorted(ids(leases)) == ["new 0", "new 1", "old 0", "old 1"]
        assert {lease.item.execution_id for lease in leases if lease.adopted} == {"old 0", "old 1"}

    async def test_one_of_many_adopts(self, queue: Queue, clients: Sequence[Queue], advance: Advance) -> None:
        await queue.put([an_item(f"{number}") for number in range(10)])
        await claim(queue, lease_seconds=_SHORT)
        await advance(_OVER)

        adopted = await asyncio.gather(
            *(claim(client, worker=f"worker {number}", limit=2) for number, client in enumerate(clients))
        )

        counted = Counter(execution_id for leases in adopted for execution_id in ids(leases))
        assert counted == {f"{number}": 1 for number in range(10)}

    @pytest.mark.parametrize("step", ["renew", "ack", "release"])
    async def test_a_lease_that_ran_out_is_either_kept_or_adopted(
        self, queue: Queue, clients: Sequence[Queue], advance: Advance, step: str
    ) -> None:
        await queue.put([an_item(f"{number}") for number in range(len(clients))])
        leases = await claim(queue, worker="holder", lease_seconds=_SHORT)
        await advance(_OVER)

        async def go_on(client: Queue, lease: Lease) -> bool:
            """Whether its holder may."""
            if step == "renew":
                return not (await client.renew([lease], LEASE_SECONDS)).lost
            try:
                await (client.ack(lease) if step == "ack" else client.release(lease, delay=1_000.0))
            except LeaseLost:
                return False
            return True

        kept, adopted = await asyncio.gather(
            asyncio.gather(*(go_on(client, lease) for client, lease in zip(clients, leases, strict=True))),
            asyncio.gather(*(claim(client, worker="heir", limit=1) for client in reversed(clients))),
        )

        by_holder = [lease.item.execution_id for lease, its in zip(leases, kept, strict=True) if its]
        by_heirs = [lease.item.execution_id for some in adopted for lease in some]
        assert sorted(by_holder + by_heirs) == sorted(ids(leases))
        assert all(lease.adopted for some in adopted for lease in some)

    async def test_an_adopted_lease_runs_out_as_well(self, queue: Queue, advance: Advance) -> None:
        await queue.put([an_item("run")])
        await claim(queue, worker="first", lease_seconds=_SHORT)
        await advance(_OVER)
        await claim(queue, worker="second", lease_seconds=_SHORT)
        await advance(_OVER)

        (adopted,) = await claim(queue, worker="third")
        assert (adopted.item.execution_id, adopted.adopted) == ("run", True)

    async def test_who_adopts_hears_of_an_earlier_cancel(self, queue: Queue, advance: Advance) -> None:
        await queue.put([an_item("run")])
        await claim(queue, worker="first", lease_seconds=_SHORT)
        await queue.cancel("run")
        await advance(_OVER)

        adopted = await claim(queue, worker="second")

        assert (await queue.renew(adopted, LEASE_SECONDS)).stop == {"run"}

    # Renewal

    async def test_a_renewed_lease_lasts(self, queue: Queue, advance: Advance) -> None:
        await queue.put([an_item("run")])
        leases = await claim(queue, worker="first", lease_seconds=_SHORT)

        renewal = await queue.renew(leases, 3_600.0)
        await advance(_OVER)

        assert (renewal.lost, renewal.stop) == (frozenset(), frozenset())
        assert list(await claim(queue, worker="second")) == []

    async def test_a_renewal_counts_from_now(self, queue: Queue, advance: Advance) -> None:
        await queue.put([an_item("run")])
        leases = await claim(queue, worker="first", lease_seconds=3_600.0)
        await queue.renew(leases, _SHORT)
        await advance(_OVER)

        assert ids(await claim(queue, worker="second")) == ["run"]

    async def test_a_lease_that_ran_out_unclaimed_is_renewed(self, queue: Queue, advance: Advance) -> None:
        await queue.put([an_item("run")])
        leases = await claim(queue, worker="first", lease_seconds=_SHORT)
        await advance(_OVER)

        assert (await queue.renew(leases, 3_600.0)).lost == frozenset()
        assert list(await claim(queue, worker="second")) == []

    async def test_a_renewal_tells_which_leases_are_lost(self, queue: Queue, other: Queue, advance: Advance) -> None:
        await queue.put([an_item("adopted"), an_item("removed"), an_item("kept"), an_item("released")])
        leases = await claim(queue, worker="first", lease_seconds=_SHORT)
        _, removed, kept, released = leases
        await queue.renew([kept, removed, released], 3_600.0)
        await advance(_OVER)
        await claim(other, worker="second", capacity=0)
        await queue.ack(removed)
        await queue.release(released, delay=0.0)

        renewal = await queue.renew(leases, 3_600.0)

        assert renewal.lost == {"adopted", "removed", "released"}
        assert (await queue.renew([kept], 3_600.0)).lost == frozenset()
        assert await queue.contains(["removed"]) == frozenset()
        assert ids(await claim(other, worker="third")) == ["released"]

    async def test_renewing_nothing_is_no_error(self, queue: Queue) -> None:
        renewal = await queue.renew([], LEASE_SECONDS)

        assert (renewal.lost, renewal.stop) == (frozenset(), frozenset())

    # Ack

    async def test_ack_removes_the_item(self, queue: Queue) -> None:
        await queue.put([an_item("run")])
        lease = await claim_one(queue)

        await queue.ack(lease)

        assert await queue.contains(["run"]) == frozenset()
        assert await queue.stats() == {}

    async def test_a_repeated_ack_is_harmless(self, queue: Queue) -> None:
        await queue.put([an_item("run"), an_item("next")])
        lease = await claim_one(queue)
        await queue.ack(lease)

        await queue.ack(lease)

        assert await queue.contains(["run", "next"]) == {"next"}

    async def test_ack_works_after_the_lease_ran_out(self, queue: Queue, advance: Advance) -> None:
        await queue.put([an_item("run")])
        (lease,) = await claim(queue, lease_seconds=_SHORT)
        await advance(_OVER)

        await queue.ack(lease)

        assert list(await claim(queue, worker="second")) == []

    async def test_who_lost_the_lease_cannot_ack(self, queue: Queue, other: Queue, advance: Advance) -> None:
        await queue.put([an_item("run")])
        (lost,) = await claim(queue, worker="first", lease_seconds=_SHORT)
        await advance(_OVER)
        (adopted,) = await claim(other, worker="second")

        with pytest.raises(LeaseLost):
            await queue.ack(lost)

        assert (await other.renew([adopted], LEASE_SECONDS)).lost == frozenset()
        assert (await queue.stats())["lane"].leased == 1

    async def test_a_token_counts_even_for_the_same_worker(self, queue: Queue, advance: Advance) -> None:
        await queue.put([an_item("run")])
        (before,) = await claim(queue, worker="restarted", lease_seconds=_SHORT)
        await advance(_OVER)
        (after,) = await claim(queue, worker="restarted")

        with pytest.raises(LeaseLost):
            await queue.ack(before)
        await queue.ack(after)

    # Release

    async def test_a_released_item_waits_again_in_its_old_order(self, queue: Queue) -> None:
        await queue.put([an_item(f"{number}") for number in range(3)])
        first, second = await claim(queue, limit=2)

        await queue.release(second, delay=0.0)
        await queue.release(first, delay=0.0)

        assert ids(await claim(queue)) == ["0", "1", "2"]

    async def test_a_released_item_keeps_its_priority(self, queue: Queue) -> None:
        await queue.put([an_item("high", priority=7)])
        lease = await claim_one(queue)
        await queue.put([an_item("middle", priority=5)])
        await queue.release(lease, delay=0.0)

        leases = await claim(queue)

        assert ids(leases) == ["high", "middle"]
        assert leases[0].item.priority == 7

    async def test_a_released_item_may_be_delayed(self, queue: Queue, advance: Advance) -> None:
        await queue.put([an_item("run")])
        await queue.release(await claim_one(queue), delay=_SHORT)
        assert list(await claim(queue)) == []

        await advance(_OVER)

        assert ids(await claim(queue)) == ["run"]

    async def test_a_released_item_that_is_delayed_may_be_cancelled(self, queue: Queue) -> None:
        await queue.put([an_item("run")])
        await queue.release(await claim_one(queue), delay=1_000.0)

        assert await queue.cancel("run") is Cancelled.REMOVED
        assert await queue.stats() == {}

    async def test_release_frees_slot_and_place(self, queue: Queue) -> None:
        await queue.put([an_item("released"), an_item("next")])
        (lease,) = await claim(queue, capacity=1)
        await queue.assign(lease, [("place", 1)])

        await queue.release(lease, delay=100.0)

        assert await queue.loads("lane") == {}
        (following,) = await claim(queue, capacity=1)
        assert following.item.execution_id == "next"
        assert await queue.assign(following, [("place", 1)]) == "place"

    async def test_a_released_item_is_granted_without_its_old_place(self, queue: Queue) -> None:
        await queue.put([an_item()])
        lease = await claim_one(queue)
        await queue.assign(lease, [("place", 1)])
        await queue.release(lease, delay=0.0)

        again = await claim_one(queue)

        assert again.place is None
        assert await queue.loads("lane") == {}

    async def test_a_repeated_release_is_harmless(self, queue: Queue) -> None:
        await queue.put([an_item("run")])
        lease = await claim_one(queue)
        await queue.release(lease, delay=0.0)

        await queue.release(lease, delay=0.0)

        assert ids(await claim(queue)) == ["run"]
        assert list(await claim(queue)) == []

    async def test_who_lost_the_lease_cannot_release(self, queue: Queue, other: Queue, advance: Advance) -> None:
        await queue.put([an_item("adopted"), an_item("removed")])
        adopted, removed = await claim(queue, worker="first", lease_seconds=_SHORT)
        await queue.ack(removed)
        await advance(_OVER)
        await claim(other, worker="second")

        for lost in (adopted, removed):
            with pytest.raises(LeaseLost):
                await queue.release(lost, delay=0.0)

        assert list(await claim(other)) == []
        assert await queue.contains(["removed"]) == frozenset()

    # Handing over

    async def test_leases_handed_over_are_adopted_at_once(self, queue: Queue, other: Queue) -> None:
        await queue.put([an_item("1"), an_item("2"), an_item("kept")])
        leases = await claim(queue, worker="first", capacity=3)
        await queue.assign(leases[0], [("place", 1)])

        await queue.hand_over(leases[:2])

        assert (await queue.stats())["lane"].leased == 3
        adopted = await claim(other, worker="second", capacity=3)
        assert sorted((lease.item.execution_id, lease.adopted, lease.place) for lease in adopted) == [
            ("1", True, "place"),
            ("2", True, None),
        ]
        assert all(lease.handed_over for lease in adopted)

    async def test_a_lease_that_was_handed_over_once_may_run_out_later(
        self, queue: Queue, other: Queue, advance: Advance
    ) -> None:
        await queue.put([an_item("run")])
        await queue.hand_over(await claim(queue, worker="first"))
        (adopted,) = await claim(other, worker="second", lease_seconds=_SHORT)
        assert adopted.handed_over
        assert not (await other.renew([adopted], _SHORT)).lost

        await advance(_OVER)

        (again,) = await claim(queue, worker="third")
        assert (again.adopted, again.handed_over) == (True, False)

    async def test_leases_that_are_lost_are_not_handed_over(self, queue: Queue, other: Queue, advance: Advance) -> None:
        await queue.put([an_item("adopted"), an_item("removed"), an_item("released")])
        leases = await claim(queue, worker="first", lease_seconds=_SHORT)
        await queue.ack(leases[1])
        await queue.release(leases[2], delay=100.0)
        await advance(_OVER)
        await claim(other, worker="second")

        await queue.hand_over(leases)
        await queue.hand_over(leases)

        assert list(await claim(other, worker="third")) == []
        assert await queue.contains(["removed"]) == frozenset()
