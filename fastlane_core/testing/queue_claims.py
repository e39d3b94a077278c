"""Tests of what a queue grants: order, priority, capacity, delay."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence

from fastlane_core.contracts.queue import Cancelled, Lease, Queue, Renewal
from fastlane_core.testing.examples import an_item
from fastlane_core.testing.queue_fixtures import (
    DEADLINE,
    LEASE_SECONDS,
    Advance,
    QueueFixtures,
    claim,
    claim_one,
    ids,
)


class QueueClaimTests(QueueFixtures):
    """Put, claim and cancel."""

    async def test_an_empty_lane_grants_nothing(self, queue: Queue) -> None:
        assert list(await claim(queue)) == []
        assert list(await claim(queue, "nowhere")) == []

    async def test_a_claim_turns_an_item_into_a_lease(self, queue: Queue) -> None:
        item = an_item(task_id="a task", priority=4)
        await queue.put([item])

        (lease,) = await claim(queue, worker="me")

        assert (lease.item, lease.worker, lease.adopted, lease.place) == (item, "me", False, None)
        assert lease.token
        assert list(await claim(queue, worker="you")) == []

    async def test_claims_have_different_tokens(self, queue: Queue) -> None:
        await queue.put([an_item() for _ in range(20)])

        assert len({lease.token for lease in await claim(queue)}) == 20

    async def test_putting_nothing_is_no_error(self, queue: Queue) -> None:
        await queue.put([])

        assert await queue.stats() == {}

    # Order

    async def test_first_in_is_first_out(self, queue: Queue) -> None:
        await queue.put([an_item("1"), an_item("2")])
        await queue.put([an_item("3")])

        assert [ids(await claim(queue, limit=1)) for _ in range(4)] == [["1"], ["2"], ["3"], []]

    async def test_a_claim_of_several_keeps_the_order(self, queue: Queue) -> None:
        await queue.put([an_item(f"{number}") for number in range(50)])

        assert ids(await claim(queue)) == [f"{number}" for number in range(50)]

    async def test_higher_priority_goes_first(self, queue: Queue) -> None:
        for number, priority in enumerate([0, 9, 5, 0, 9, 5]):
            await queue.put([an_item(f"{priority}-{number}", priority=priority)])

        assert ids(await claim(queue, limit=4)) == ["9-1", "9-4", "5-2", "5-5"]
        await queue.put([an_item("late", priority=1)])
        assert ids(await claim(queue)) == ["late", "0-0", "0-3"]

    async def test_lanes_are_apart(self, queue: Queue) -> None:
        await queue.put([an_item("a", lane="first"), an_item("b", lane="second", priority=9)])

        assert ids(await claim(queue, "first")) == ["a"]
        assert ids(await claim(queue, "second")) == ["b"]

    async def test_an_item_that_waits_is_left_as_it_is(self, queue: Queue) -> None:
        await queue.put([an_item("1", priority=2), an_item("2", priority=2)])

        await queue.put([an_item("1", priority=0), an_item("2", priority=9, lane="other"), an_item("3")])

        leases = await claim(queue)
        assert ids(leases) == ["1", "2", "3"]
        assert [lease.item.priority for lease in leases] == [2, 2, 0]
        assert list(await claim(queue, "other")) == []

    async def test_an_item_that_is_leased_is_not_put_again(self, queue: Queue) -> None:
        item = an_item()
        await queue.put([item])
        lease = await claim_one(queue)

        await queue.put([item])

        assert list(await claim(queue)) == []
        await queue.ack(lease)
        assert await queue.contains([item.execution_id]) == frozenset()

    async def test_an_item_twice_in_one_call_is_put_once(self, queue: Queue) -> None:
        await queue.put([an_item("same"), an_item("same")])

        assert ids(await claim(queue)) == ["same"]

    # Capacity

    async def test_a_claim_heeds_its_limit(self, queue: Queue) -> None:
        await queue.put([an_item(f"{number}") for number in range(5)])

        assert list(await claim(queue, limit=0)) == []
        assert ids(await claim(queue, limit=2)) == ["0", "1"]

    async def test_a_full_lane_grants_nothing(self, queue: Queue) -> None:
        await queue.put([an_item(f"{number}") for number in range(5)])

        first = await claim(queue, capacity=3)

        assert ids(first) == ["0", "1", "2"]
        assert list(await claim(queue, capacity=3)) == []
        assert list(await claim(queue, capacity=2)) == []
        assert ids(await claim(queue, capacity=4)) == ["3"]
        await queue.ack(first[0])
        assert list(await claim(queue, capacity=3)) == []
        await queue.ack(first[1])
        assert ids(await claim(queue, capacity=3)) == ["4"]

    async def test_a_full_lane_does_not_hold_up_another(self, queue: Queue) -> None:
        await queue.put([an_item(lane="full"), an_item(lane="full"), an_item("free", lane="other")])
        await claim(queue, "full", capacity=1)

        assert ids(await claim(queue, "other", capacity=1)) == ["free"]

    async def test_concurrent_claims_grant_each_item_once(self, queue: Queue, clients: Sequence[Queue]) -> None:
        items = [an_item() for _ in range(300)]
        await asyncio.gather(*(client.put(items[number::50]) for number, client in enumerate(clients)))
        granted: list[Lease] = []

        async def take(number: int, client: Queue) -> None:
            while leases := await claim(client, worker=f"worker {number}", capacity=1_000, limit=3):
                granted.extend(leases)

        await asyncio.gather(*(take(number, client) for number, client in enumerate(clients)))

        assert Counter(ids(granted)) == Counter(item.execution_id for item in items)

    async def test_an_execution_that_many_put_in_many_lanes_is_in_one(
        self, queue: Queue, clients: Sequence[Queue]
    ) -> None:
        lanes = [f"lane {number}" for number in range(5)]
        await asyncio.gather(
            *(client.put([an_item("same", lane=lanes[number % 5])]) for number, client in enumerate(clients))
        )

        found = [lease for lane in lanes for lease in await claim(queue, lane)]
        assert ids(found) == ["same"]
        assert await queue.contains(["same"]) == {"same"}
        await queue.ack(found[0])
        assert await queue.contains(["same"]) == frozenset()

    async def test_what_each_of_many_puts_stays_in_its_order(self, queue: Queue, clients: Sequence[Queue]) -> None:
        async def put(number: int, client: Queue) -> None:
            for step in range(5):
                await client.put([an_item(f"{number} {step}")])

        await asyncio.gather(*(put(number, client) for number, client in enumerate(clients)))

        granted = ids(await claim(queue, capacity=1_000, limit=1_000))
        for number in range(len(clients)):
            mine = [each for each in granted if each.split()[0] == f"{number}"]
            assert mine == [f"{number} {step}" for step in range(5)]

    async def test_concurrent_claims_never_exceed_the_capacity(self, queue: Queue, clients: Sequence[Queue]) -> None:
        await queue.put([an_item() for _ in range(200)])
        holding = 0
        done: list[str] = []
        most = 0

        async def work(number: int, client: Queue) -> None:
            nonlocal holding, most
            while len(done) < 200:
                leases = await claim(client, worker=f"worker {number}", capacity=7, limit=2)
                # Granted by the server earlier, and given back to it later, than is counted here.
                holding += len(leases)
                most = max(most, holding)
                await asyncio.sleep(0)
                for lease in leases:
                    done.append(lease.item.execution_id)
                    holding -= 1
                    await client.ack(lease)

        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(*(work(number, client) for number, client in enumerate(clients)))

        assert 1 <= most <= 7
        assert len(set(done)) == len(done) == 200

    # Delay

    async def test_a_delayed_item_is_granted_when_it_is_due(
        self, queue: Queue, now: Callable[[], float], advance: Advance
    ) -> None:
        await queue.put([an_item("later", due_at=now() + 2.0, priority=9), an_item("now")])
        assert ids(await claim(queue)) == ["now"]
        assert list(await claim(queue)) == []

        await advance(2.5)

        assert ids(await claim(queue)) == ["later"]

    async def test_an_item_due_in_the_past_is_granted_at_once(self, queue: Queue, now: Callable[[], float]) -> None:
        await queue.put([an_item("past", due_at=now() - 100.0)])

        assert ids(await claim(queue)) == ["past"]

    async def test_delayed_items_that_are_due_go_by_priority(
        self, queue: Queue, now: Callable[[], float], advance: Advance
    ) -> None:
        await queue.put(
            [
                an_item("low", due_at=now() + 0.5),
                an_item("high", due_at=now() + 2.0, priority=5),
                an_item("waiting", priority=3),
                an_item("not yet", due_at=now() + 1_000.0, priority=9),
            ]
        )
        await advance(2.5)

        assert ids(await claim(queue)) == ["high", "waiting", "low"]

    async def test_many_delayed_items_do_not_hide_what_is_due(self, queue: Queue, now: Callable[[], float]) -> None:
        later = now() + 1_000.0
        await queue.put([an_item(due_at=later, priority=9) for _ in range(500)])
        await queue.put([an_item("due")])

        assert ids(await claim(queue)) == ["due"]

    # Cancel

    async def test_a_waiting_item_is_removed(self, queue: Queue, now: Callable[[], float]) -> None:
        await queue.put([an_item("waiting"), an_item("delayed", due_at=now() + 100.0), an_item("stays")])

        assert await queue.cancel("waiting") is Cancelled.REMOVED
        assert await queue.cancel("delayed") is Cancelled.REMOVED

        assert await queue.cancel("waiting") is Cancelled.ABSENT
        assert await queue.contains(["waiting", "delayed", "stays"]) == {"stays"}
        assert ids(await claim(queue)) == ["stays"]

    async def test_what_was_cancelled_can_be_put_again(self, queue: Queue) -> None:
        await queue.put([an_item("again")])
        await queue.cancel("again")

        await queue.put([an_item("again")])

        lease = await claim_one(queue)
        assert (await queue.renew([lease], LEASE_SECONDS)).stop == frozenset()

    async def test_a_leased_item_stays_and_its_holder_hears_of_it(self, queue: Queue, other: Queue) -> None:
        await queue.put([an_item("told"), an_item("untold")])
        leases = await claim(queue)

        assert await other.cancel("told") is Cancelled.LEASED
        assert await other.cancel("told") is Cancelled.LEASED

        for _ in range(2):
            renewal = await queue.renew(leases, LEASE_SECONDS)
            assert renewal == Renewal(stop=frozenset({"told"}))
        assert (await queue.stats())["lane"].leased == 2

    async def test_an_item_is_either_cancelled_or_granted(self, queue: Queue, clients: Sequence[Queue]) -> None:
        items = [an_item() for _ in range(50)]
        await queue.put(items)

        claims, cancels = await asyncio.gather(
            asyncio.gather(*(claim(client, limit=1) for client in clients)),
            asyncio.gather(*(client.cancel(item.execution_id) for client, item in zip(clients, items, strict=True))),
        )

        granted = {execution_id for leases in claims for execution_id in ids(leases)}
        removed = {
            item.execution_id for item, cancelled in zip(items, cancels, strict=True) if cancelled is Cancelled.REMOVED
        }
        assert not granted & removed
        assert granted | removed == {item.execution_id for item in items}
