"""Tests of limits that callers set, and of those that count over all lanes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from fastlane_core.contracts.queue import Lease, Queue, task_key
from fastlane_core.testing.examples import an_item
from fastlane_core.testing.queue_fixtures import (
    DEADLINE,
    LEASE_SECONDS,
    Advance,
    BuildQueue,
    QueueFixtures,
    claim,
    claim_one,
    ids,
)
from fastlane_core.testing.queue_limits import limited

#: Seconds that a short lease lasts, and after which it has run out.
_SHORT = 2.0
_OVER = 2.5


class QueueCapacityTests(QueueFixtures):
    """`set_limit`, and `overall` of claims."""

    @pytest.fixture
    def counts_over_lanes(self) -> bool:
        """Whether a key counts the leases of all lanes, and not of each by itself."""
        return True

    # Capacities that are set

    async def test_a_capacity_that_is_set_holds_for_what_waits_already(self, queue: Queue) -> None:
        await queue.put([an_item(f"{number}") for number in range(5)])
        (running,) = await claim(queue, limit=1)
        await queue.set_limit(task_key("task"), 2)

        second = await claim_one(queue)
        assert list(await claim(queue)) == []
        await queue.put([an_item("5")])
        assert list(await claim(queue)) == []
        await queue.ack(running)
        assert ids(await claim(queue)) == ["2"]
        await queue.ack(second)
        assert ids(await claim(queue)) == ["3"]

    async def test_a_higher_capacity_lets_more_go(self, queue: Queue) -> None:
        await queue.set_limit(task_key("task"), 1)
        await queue.put([an_item(f"{number}") for number in range(6)])
        assert ids(await claim(queue)) == ["0"]

        await queue.set_limit(task_key("task"), 3)
        assert ids(await claim(queue)) == ["1", "2"]
        await queue.set_limit(task_key("task"), None)
        await queue.set_limit(task_key("task"), None)

        assert ids(await claim(queue)) == ["3", "4", "5"]
        assert await queue.limits() == {}

    async def test_lifting_a_limit_lets_many_go(self, queue: Queue) -> None:
        await queue.set_limit(task_key("task"), 1)
        await queue.put([an_item(f"{number}") for number in range(2_200)])
        await claim(queue)

        await queue.set_limit(task_key("task"), None)

        assert len(await claim(queue, capacity=10_000, limit=10_000)) == 2_199

    async def test_a_lower_capacity_lets_what_runs_go_on(self, queue: Queue) -> None:
        await queue.put([limited(f"{number}", 4) for number in range(8)])
        leases = await claim(queue)
        await queue.set_limit(task_key("task"), 2)

        assert (await queue.renew(leases, LEASE_SECONDS)).lost == frozenset()
        for lease in leases[:2]:
            await queue.ack(lease)
            assert list(await claim(queue)) == []
        await queue.ack(leases[2])

        assert ids(await claim(queue)) == ["4"]

    async def test_the_strictest_counts(self, queue: Queue) -> None:
        await queue.set_limit(task_key("loose"), 5)
        await queue.set_limit(task_key("strict"), 1)
        await queue.put(
            [limited(f"{number} {task}", 2, task_id=task) for task in ("loose", "strict") for number in range(4)]
        )

        assert sorted(ids(await claim(queue))) == ["0 loose", "0 strict", "1 loose"]

    async def test_a_capacity_of_none_at_all_stops_a_task(self, queue: Queue) -> None:
        await queue.set_limit(task_key("task"), 0)
        await queue.put([an_item("1"), an_item("2")])
        assert list(await claim(queue)) == []

        await queue.set_limit(task_key("task"), None)

        assert ids(await claim(queue)) == ["1", "2"]

    async def test_what_is_set_stays(self, queue: Queue, build_queue: BuildQueue) -> None:
        await queue.set_limit(task_key("first"), 3)
        await queue.set_limit(task_key("second"), 4)
        await queue.set_limit(task_key("second"), 1)
        await queue.close()

        again = build_queue()
        await again.open()
        try:
            assert await again.limits() == {task_key("first"): 3, task_key("second"): 1}
            await again.put([an_item("new lane", lane="new", task_id="second"), an_item(lane="new", task_id="second")])
            assert ids(await claim(again, "new")) == ["new lane"]
        finally:
            await again.close()

    async def test_putting_an_item_again_brings_its_limits_up_to_date(self, queue: Queue) -> None:
        await queue.put([limited(f"{number}", 1) for number in range(6)])
        (running,) = await claim(queue)

        await queue.put([limited(f"{number}", 3) for number in range(6)])
        assert ids(await claim(queue)) == ["1", "2"]
        await queue.put([limited("5", 3)])
        await queue.put([an_item(f"{number}") for number in range(5)])
        assert ids(await claim(queue)) == ["3", "4"]
        await queue.put([limited("5", 1)])
        assert list(await claim(queue)) == []
        assert (await queue.renew([running], LEASE_SECONDS)).lost == frozenset()
        assert (await queue.stats())["lane"].leased == 5

    # All lanes

    async def test_a_key_counts_over_all_lanes(self, queue: Queue, counts_over_lanes: bool) -> None:
        if not counts_over_lanes:
            pytest.skip("its lanes lie on several servers")
        await queue.put([limited("a", 1, lane="first"), limited("b", 1, lane="second")])
        lease = await claim_one(queue, "first")
        assert list(await claim(queue, "second")) == []
        assert (await queue.stats())["second"].held == 1
        await queue.put([limited("c", 1, lane="first")])

        await queue.ack(lease)

        lease = await claim_one(queue, "second")
        assert lease.item.execution_id == "b"
        await queue.ack(lease)
        assert ids(await claim(queue, "first")) == ["c"]

    async def test_all_lanes_together_hold_no_more_than_asked_for(self, queue: Queue, advance: Advance) -> None:
        if not queue.counts_overall:
            pytest.skip("its lanes lie on several servers")
        await queue.put([an_item(f"{lane}{number}", lane=lane) for lane in "ab" for number in range(5)])

        async def take(lane: str, overall: int) -> Sequence[Lease]:
            return await queue.claim(
                lane, worker="worker", capacity=100, limit=4, lease_seconds=_SHORT, overall=overall
            )

        first = await take("a", 3)
        assert ids(first) == ["a0", "a1", "a2"]
        assert list(await take("b", 3)) == []
        assert ids(await take("b", 5)) == ["b0", "b1"]
        await queue.ack(first[0])
        assert list(await take("b", 4)) == []
        await queue.ack(first[1])
        assert ids(await take("a", 4)) == ["a3"]
        await advance(_OVER)
        assert [lease.adopted for lease in await take("a", 1)] == [True, True]

    async def test_concurrent_clients_never_exceed_what_all_lanes_may_hold(
        self, queue: Queue, clients: Sequence[Queue]
    ) -> None:
        if not queue.counts_overall:
            pytest.skip("its lanes lie on several servers")
        items = [an_item(lane=f"{number % 5}") for number in range(150)]
        await queue.put(items)
        holding = most = 0
        done: list[str] = []

        async def work(number: int, client: Queue) -> None:
            nonlocal holding, most
            while len(done) < len(items):
                leases = await client.claim(
                    f"{number % 5}", worker=f"{number}", capacity=9, limit=3, lease_seconds=LEASE_SECONDS, overall=7
                )
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
        assert len(set(done)) == len(done) == len(items)
