"""Tests of waiting for work, and of messages."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from fastlane_core.contracts.queue import Lease, Queue, Subscription
from fastlane_core.testing.examples import an_item
from fastlane_core.testing.queue_fixtures import DEADLINE, Advance, QueueFixtures, claim, claim_one

#: Seconds to wait where something comes: many times the deadline, so that only a wake-up ends the test in time.
_LONG = DEADLINE * 100


class QueueWakeupTests(QueueFixtures):
    """wait, publish and subscribe. All of it only saves waiting, but a queue that works does wake."""

    async def test_waiting_ends_when_its_time_is_up(self, queue: Queue) -> None:
        async with asyncio.timeout(DEADLINE):
            await queue.wait(["lane", "other"], 0.05)
            await queue.wait(["lane"], 0.0)

    async def test_a_new_item_wakes_who_waits(self, queue: Queue, other: Queue) -> None:
        await woken_by(queue, lambda: other.put([an_item()]))
        await woken_by(other, lambda: other.put([an_item()]))

    async def test_an_item_in_any_of_the_lanes_wakes(self, queue: Queue, other: Queue) -> None:
        await woken_by(queue, lambda: other.put([an_item(lane="third")]), lanes=["first", "second", "third"])

    async def test_an_item_that_came_before_the_waiting_is_not_missed(self, queue: Queue, other: Queue) -> None:
        assert list(await claim(queue)) == []
        await other.put([an_item()])

        async with asyncio.timeout(DEADLINE):
            await queue.wait(["lane"], _LONG)

    async def test_a_freed_slot_wakes(self, queue: Queue, other: Queue) -> None:
        await queue.put([an_item() for _ in range(4)])
        first, second = await claim(queue, capacity=2)

        await woken_by(other, lambda: queue.ack(first), capacity=2)
        await woken_by(other, lambda: queue.release(second, delay=1_000.0), capacity=2)

    async def test_leases_handed_over_wake(self, queue: Queue, other: Queue) -> None:
        await queue.put([an_item()])
        lease = await claim_one(queue)

        await woken_by(other, lambda: queue.hand_over([lease]))

    async def test_a_lease_that_runs_out_wakes(self, queue: Queue, other: Queue, advance: Advance) -> None:
        await queue.put([an_item()])
        await claim(queue, lease_seconds=2.0)

        await woken_by(other, lambda: advance(2.5))

    async def test_a_delayed_item_wakes_when_it_is_due(
        self, queue: Queue, other: Queue, now: Callable[[], float], advance: Advance
    ) -> None:
        await queue.put([an_item(due_at=now() + 2.0)])

        await woken_by(other, lambda: advance(2.5))

    async def test_being_rebuilt_wakes(self, new_queue: Queue, other: Queue) -> None:
        await new_queue.put([an_item()])

        await woken_by(other, new_queue.rebuilt)

    async def test_everyone_who_waits_is_woken_in_time_to_do_all_work(self, queue: Queue, other: Queue) -> None:
        items = [an_item() for _ in range(60)]
        done: list[str] = []
        all_done = asyncio.Event()

        async def work(client: Queue, worker: str) -> None:
            while True:
                for lease in await claim(client, worker=worker, capacity=3, limit=1):
                    await client.ack(lease)
                    done.append(lease.item.execution_id)
                    if len(done) == len(items):
                        all_done.set()
                    break
                else:
                    await client.wait(["lane"], _LONG)

        workers = [asyncio.create_task(work((queue, other)[n % 2], f"worker {n}")) for n in range(6)]
        try:
            async with asyncio.timeout(DEADLINE):
                for number, item in enumerate(items):
                    await (queue, other)[number % 2].put([item])
                await all_done.wait()
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

        assert sorted(done) == sorted(item.execution_id for item in items)

    # Messages

    async def test_a_message_reaches_who_listens(self, queue: Queue, other: Queue) -> None:
        async with queue.subscribe(["topic"]) as here, other.subscribe(["else", "topic"]) as there:
            await queue.publish("topic")

            assert await here.next(DEADLINE) == "topic"
            assert await there.next(DEADLINE) == "topic"

    async def test_topics_are_told_apart(self, queue: Queue, other: Queue) -> None:
        async with queue.subscribe(["a", "b"]) as subscription:
            await other.publish("c")
            await other.publish("b")
            assert await subscription.next(DEADLINE) == "b"

            await other.publish("a")
            await receive(subscription, {"a"})

    async def test_messages_of_several_topics_all_arrive(self, queue: Queue, other: Queue) -> None:
        topics = {f"topic {number}" for number in range(20)}
        async with queue.subscribe(sorted(topics)) as subscription:
            for topic in topics:
                await other.publish(topic)

            await receive(subscription, topics)

    async def test_nothing_comes_when_nothing_is_published(self, queue: Queue, other: Queue) -> None:
        async with queue.subscribe(["topic"]) as subscription:
            await other.publish("other")
            await other.put([an_item()])

            assert await subscription.next(0.1) is None
            assert await subscription.next(0.0) is None

    async def test_a_message_wakes_who_listens_already(self, queue: Queue, other: Queue) -> None:
        async with queue.subscribe(["topic"]) as subscription:
            listening = asyncio.create_task(subscription.next(_LONG))
            await asyncio.sleep(0)
            await other.publish("topic")

            assert await asyncio.wait_for(listening, DEADLINE) == "topic"

    async def test_publishing_to_nobody_is_no_error(self, queue: Queue) -> None:
        async with queue.subscribe(["topic"]):
            pass

        await queue.publish("topic")

    async def test_many_listeners_hear_of_one_message(self, queue: Queue, other: Queue) -> None:
        async def listen(client: Queue, ready: asyncio.Semaphore) -> str | None:
            async with client.subscribe(["topic"]) as subscription:
                ready.release()
                return await subscription.next(DEADLINE)

        ready = asyncio.Semaphore(0)
        listeners = [asyncio.create_task(listen((queue, other)[number % 2], ready)) for number in range(40)]
        for _ in listeners:
            await asyncio.wait_for(ready.acquire(), DEADLINE)
        await queue.publish("topic")

        assert await asyncio.gather(*listeners) == ["topic"] * 40


async def woken_by(
    waiting: Queue, change: Callable[[], Awaitable[None]], *, lanes: list[str] | None = None, capacity: int = 100
) -> None:
    """Wait until something can be claimed, and make the change meanwhile."""
    lanes = lanes or ["lane"]
    granted: list[Lease] = []

    async def wait_and_claim() -> None:
        while not granted:
            await waiting.wait(lanes, _LONG)
            for lane in lanes:
                granted.extend(await claim(waiting, lane, worker="waiting", capacity=capacity))

    task = asyncio.create_task(wait_and_claim())
    try:
        # Let it settle in its wait: the change is to wake it there.
        await asyncio.sleep(0.1)
        assert not granted
        await change()
        await asyncio.wait_for(task, DEADLINE)
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def receive(subscription: Subscription, topics: set[str]) -> None:
    """Read messages until all of the topics came."""
    missing = set(topics)
    async with asyncio.timeout(DEADLINE):
        while missing:
            topic = await subscription.next(DEADLINE)
            assert topic is not None
            missing.discard(topic)
