"""The suite that every queue passes, built in or not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fastlane_core.contracts.queue import Lease, Queue
from fastlane_core.testing.examples import ODD_TEXTS, an_item
from fastlane_core.testing.queue_capacities import QueueCapacityTests
from fastlane_core.testing.queue_claims import QueueClaimTests
from fastlane_core.testing.queue_fixtures import Advance, BuildQueue, claim, claim_one, ids
from fastlane_core.testing.queue_leases import QueueLeaseTests
from fastlane_core.testing.queue_limits import QueueLimitTests
from fastlane_core.testing.queue_places import QueuePlaceTests
from fastlane_core.testing.queue_rebuild import QueueRebuildTests
from fastlane_core.testing.queue_views import QueueViewTests
from fastlane_core.testing.queue_wakeups import QueueWakeupTests


class QueueSuite(
    QueueClaimTests,
    QueueLeaseTests,
    QueuePlaceTests,
    QueueLimitTests,
    QueueCapacityTests,
    QueueViewTests,
    QueueRebuildTests,
    QueueWakeupTests,
):
    """Tests of the contract `fastlane_core.contracts.queue.Queue`.

    Subclass it in a test module, with pytest-asyncio installed and `asyncio_mode = "auto"`, and give these fixtures:

    `build_queue`
        A function that returns a new queue, not opened. All that are built within one test use the same data, as
        processes of one deployment do, and these are empty at the start of the test.
    `now`
        A function that gives the time by the queue's clock.
    `advance`
        An async function that moves the queue's clock on by so many seconds: by setting it, where the queue lets its
        clock be given, and else by waiting.
    `counts_over_lanes`
        Only where it is False: whether a key counts the leases of all lanes together.

        class TestMyQueue(QueueSuite):
            @pytest.fixture
            def build_queue(self, my_server):
                return lambda: MyQueue(my_server.url)

            @pytest.fixture
            def now(self):
                return time.time

            @pytest.fixture
            def advance(self):
                return asyncio.sleep
    """

    async def test_health_describes_the_server(self, queue: Queue) -> None:
        assert await queue.health()

    async def test_its_clock_is_the_server_s_or_none(self, queue: Queue, now: Callable[[], float]) -> None:
        clock = await queue.clock()
        assert clock is None or abs(clock - now()) < 60

    async def test_who_opens_it_to_look_sees_what_others_do(
        self, queue: Queue, build_queue: BuildQueue, now: Callable[[], float], advance: Advance
    ) -> None:
        await queue.put([an_item("leased")])
        await claim_one(queue)
        await queue.put([an_item("waiting")])
        await queue.put([an_item("due", due_at=now() + 1.0), an_item("later", due_at=now() + 600.0)])
        await advance(2.0)
        looking = build_queue()
        await looking.open_to_look()
        try:
            stats = (await looking.stats())["lane"]
            assert (stats.waiting, stats.delayed, stats.leased) == (2, 1, 1)
            assert [item.execution_id for item in await looking.peek("lane", 1)] == ["waiting"]
            assert await looking.contains(["leased", "due", "absent"]) == {"leased", "due"}
            assert not await looking.needs_rebuild()
            assert await looking.health()
        finally:
            await looking.close()
        assert ids(await claim(queue)) == ["waiting", "due"]

    async def test_everything_is_there_after_closing_and_opening_again(self, build_queue: BuildQueue) -> None:
        first = build_queue()
        await first.open()
        await first.rebuilt()
        await first.put([an_item("leased", priority=1), an_item("waiting")])
        lease = await claim_one(first)
        await first.assign(lease, [("place", 1)])
        await first.close()

        second = build_queue()
        await second.open()
        try:
            assert not await second.needs_rebuild()
            assert await second.loads("lane") == {"place": 1}
            assert (await second.renew([lease], 30.0)).lost == frozenset()
            assert ids(await claim(second)) == ["waiting"]
        finally:
            await second.close()

    async def test_what_one_client_does_the_others_see(self, queue: Queue, other: Queue) -> None:
        await queue.put([an_item("shared")])

        lease = await claim_one(other)

        assert await claim(queue) == []
        await queue.ack(lease)
        assert await other.contains(["shared"]) == frozenset()

    @pytest.mark.parametrize("text", ODD_TEXTS)
    async def test_any_text_will_do_for_every_string(self, queue: Queue, text: str) -> None:
        item = an_item(text, lane=text, task_id=text, priority=3)
        await queue.put([item, an_item(text + "\x00", lane=text), an_item("elsewhere", lane=text + "\x00")])

        assert await queue.contains([text, "absent"]) == {text}
        assert (await queue.peek(text, 1)) == [item]
        (lease,) = await claim(queue, text, worker=text, limit=1)
        assert (lease.item, lease.worker) == (item, text)
        assert await queue.assign(lease, [(text, 1)]) == text
        assert await queue.loads(text) == {text: 1}
        stats = await queue.stats()
        assert (stats[text].waiting, stats[text].leased, stats[text].places) == (1, 1, {text: 1})
        assert stats[text + "\x00"].waiting == 1
        assert (await queue.cancel(text)).value == "leased"
        assert (await queue.renew([lease], 30.0)).stop == {text}
        await queue.release(lease, delay=0.0)
        lease = await claim_one(queue, text)
        await queue.hand_over([lease])
        (adopted,) = await claim(queue, text, worker=text + "2", limit=1)
        assert adopted.adopted
        await queue.ack(adopted)
        restored = Lease(item=item, worker=text, token=text, adopted=False, place=text)
        await queue.restore_leases([restored], 30.0)
        assert await queue.renew([restored], 30.0) == await queue.renew([], 30.0)
        async with queue.subscribe([text]) as subscription:
            await queue.publish(text)
            assert await subscription.next(30.0) == text

    async def test_many_items_go_through(self, queue: Queue) -> None:
        items = [an_item(f"{number:04}", priority=number % 3) for number in range(2_000)]
        await queue.put(items)

        leases: list[Lease] = []
        while more := await claim(queue, capacity=10_000, limit=300):
            leases += more

        assert ids(leases) == [item.execution_id for item in sorted(items, key=lambda item: -item.priority)]
        assert (await queue.renew(leases, 30.0)).lost == frozenset()
        for lease in leases[:200]:
            await queue.ack(lease)
        assert (await queue.stats())["lane"].leased == 1_800
