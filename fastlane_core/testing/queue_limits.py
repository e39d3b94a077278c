"""Tests of limits: keys under which only so many items are leased at a time, and what waits behind them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from fastlane_core.contracts.queue import Cancelled, Lease, Limit, Queue, QueueItem, job_key, task_key
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

#: Seconds that a short lease lasts, and after which it has run out.
_SHORT = 2.0
_OVER = 2.5


def limited(
    execution_id: str, capacity: int, *, task_id: str = "task", lane: str = "lane", priority: int = 0
) -> QueueItem:
    """An item whose task is limited."""
    return an_item(
        execution_id, task_id=task_id, lane=lane, priority=priority, limits=(a_limit(task_key(task_id), capacity),)
    )


def of_job(
    execution_id: str, job: str, *, capacity: int = 1, of_task: int | None = None, task_id: str = "task"
) -> QueueItem:
    """An item whose job is limited, and its task too where that is told."""
    limits = [a_limit(job_key(task_id, job), capacity)]
    if of_task is not None:
        limits.append(a_limit(task_key(task_id), of_task))
    return an_item(execution_id, task_id=task_id, limits=tuple(limits))


def a_limit(key: str, capacity: int) -> Limit:
    """A limit."""
    return Limit(key=key, capacity=capacity)


class QueueLimitTests(QueueFixtures):
    """Limits that items bring with them."""

    async def test_no_more_are_leased_than_the_limit_of_their_task_allows(self, queue: Queue) -> None:
        items = [limited(f"{number}", 2) for number in range(5)]
        await queue.put(items)

        first = await claim(queue)

        assert [lease.item for lease in first] == items[:2]
        assert list(await claim(queue)) == []
        await queue.ack(first[0])
        assert ids(await claim(queue)) == ["2"]
        assert list(await claim(queue)) == []
        await queue.ack(first[1])
        assert ids(await claim(queue)) == ["3"]

    async def test_a_task_at_its_limit_keeps_nobody_else_waiting(self, queue: Queue) -> None:
        await queue.put([limited(f"{number:04}", 1, priority=9) for number in range(1_200)])
        await queue.put([an_item(f"other {number}", task_id="other") for number in range(3)])
        for number in range(1_200):
            await queue.put([limited(f"single {number:04}", 1, task_id="single", priority=5)])
            if number == 10:
                break
        await queue.put([an_item("last", task_id="other")])

        leases = await claim(queue, limit=6)

        assert ids(leases) == ["0000", "single 0000", "other 0", "other 1", "other 2", "last"]

    async def test_many_that_are_found_to_be_held_do_not_hide_the_others(self, queue: Queue) -> None:
        await queue.put([an_item(f"{number:04}", priority=9) for number in range(2_500)])
        await queue.put([an_item("other", task_id="other")])
        await queue.set_limit(task_key("task"), 1)

        assert ids(await claim(queue, limit=2)) == ["0000", "other"]
        assert (await queue.stats())["lane"].held == 2_499

    async def test_what_is_held_goes_by_priority_and_age(self, queue: Queue) -> None:
        await queue.put([limited("running", 1)])
        lease = await claim_one(queue)
        await queue.put([limited("1", 1), limited("2", 1), limited("high", 1, priority=5)])

        for expected in ("high", "1", "2"):
            await queue.ack(lease)
            lease = await claim_one(queue)
            assert lease.item.execution_id == expected

    async def test_what_comes_later_with_a_higher_priority_goes_first(self, queue: Queue) -> None:
        await queue.put([limited("1", 1), limited("2", 1), limited("3", 1)])
        await queue.put([limited("high", 1, priority=5)])

        lease = await claim_one(queue)

        assert lease.item.execution_id == "high"
        await queue.ack(lease)
        assert ids(await claim(queue)) == ["1"]

    async def test_the_highest_priority_of_one_call_goes_first(self, queue: Queue) -> None:
        await queue.put([limited("1", 1), limited("2", 1), limited("high", 1, priority=5)])

        assert ids(await claim(queue)) == ["high"]

    async def test_a_released_item_makes_room_for_another(self, queue: Queue, advance: Advance) -> None:
        await queue.put([limited("1", 1), limited("2", 1)])
        lease = await claim_one(queue)

        await queue.release(lease, delay=_SHORT)

        second = await claim_one(queue)
        assert second.item.execution_id == "2"
        await advance(_OVER)
        assert list(await claim(queue)) == []
        await queue.ack(second)
        assert ids(await claim(queue)) == ["1"]

    async def test_an_item_released_at_once_is_granted_again(self, queue: Queue) -> None:
        await queue.put([limited("1", 1), limited("2", 1)])
        await queue.release(await claim_one(queue), delay=0.0)

        assert ids(await claim(queue)) == ["1"]
        assert list(await claim(queue)) == []

    async def test_a_lease_that_ran_out_still_counts(self, queue: Queue, other: Queue, advance: Advance) -> None:
        await queue.put([limited("1", 1), limited("2", 1)])
        await claim(queue, lease_seconds=_SHORT)
        await advance(_OVER)

        (adopted,) = await claim(other, worker="second")

        assert (adopted.item.execution_id, adopted.adopted, adopted.item.limits) == (
            "1",
            True,
            limited("1", 1).limits,
        )
        await other.ack(adopted)
        assert ids(await claim(queue)) == ["2"]

    async def test_a_restored_lease_counts(self, queue: Queue) -> None:
        running = Lease(item=of_job("1", "job"), worker="worker", token="token", adopted=False)
        await queue.restore_leases([running, running], LEASE_SECONDS)
        await queue.put([of_job("1", "job"), of_job("2", "job"), of_job("3", "other")])

        assert ids(await claim(queue)) == ["3"]
        await queue.ack(running)
        assert ids(await claim(queue)) == ["2"]

    async def test_a_repeated_ack_frees_once(self, queue: Queue) -> None:
        await queue.put([limited(f"{number}", 2) for number in range(5)])
        first, _ = await claim(queue)
        await queue.ack(first)
        await queue.ack(first)

        assert ids(await claim(queue)) == ["2"]

    async def test_a_delayed_item_is_held_once_it_is_due(
        self, queue: Queue, now: Callable[[], float], advance: Advance
    ) -> None:
        later = an_item("later", due_at=now() + _SHORT, limits=(a_limit(task_key("task"), 1),), priority=9)
        await queue.put([later, limited("now", 1)])
        lease = await claim_one(queue)
        assert lease.item.execution_id == "now"
        await advance(_OVER)
        assert list(await claim(queue)) == []

        await queue.ack(lease)

        assert (await claim_one(queue)).item == later

    # Two keys

    async def test_both_keys_are_heeded(self, queue: Queue) -> None:
        await queue.put([of_job("a1", "a", of_task=2), of_job("a2", "a", of_task=2), of_job("b1", "b", of_task=2)])
        await queue.put([of_job("c1", "c", of_task=2)])

        first = await claim(queue)

        assert ids(first) == ["a1", "b1"]
        await queue.ack(first[1])
        (third,) = await claim(queue)
        assert third.item == of_job("c1", "c", of_task=2)
        await queue.ack(first[0])
        assert ids(await claim(queue)) == ["a2"]

    async def test_room_under_a_key_is_used_though_the_first_that_wait_for_it_cannot_go(self, queue: Queue) -> None:
        await queue.put([of_job("a0", "a", of_task=2)])
        (busy,) = await claim(queue)
        await queue.put([of_job("x", "x", of_task=2)])
        (running,) = await claim(queue)
        await queue.put([of_job(f"a{number}", "a", of_task=2) for number in range(1, 20)])
        await queue.put([of_job("b", "b", of_task=2)])
        assert list(await claim(queue)) == []

        await queue.ack(running)

        assert ids(await claim(queue)) == ["b"]
        await queue.ack(busy)
        assert ids(await claim(queue)) == ["a1"]

    async def test_room_passes_those_by_whose_narrower_limit_was_used_up_meanwhile(self, queue: Queue) -> None:
        await queue.put([of_job("x", "x", of_task=2), of_job("y", "y", of_task=2)])
        first, second = await claim(queue)
        await queue.put([of_job(f"a{number}", "a", of_task=2) for number in range(1, 4)])
        await queue.put([of_job("b", "b", of_task=2)])
        await queue.ack(first)
        third = await claim_one(queue)
        assert third.item.execution_id == "a1"

        await queue.ack(second)

        assert ids(await claim(queue)) == ["b"]
        await queue.ack(third)
        assert ids(await claim(queue)) == ["a2"]

    async def test_who_was_to_use_the_room_leaves_it_to_another(self, queue: Queue) -> None:
        await queue.put([of_job("a", "job", of_task=2), of_job("x", "other", of_task=2)])
        first, second = await claim(queue)
        await queue.put([of_job("b", "job", of_task=2), of_job("c", "job", of_task=2), of_job("y", "y", of_task=2)])
        await queue.put([of_job("z", "z", of_task=2)])
        await queue.ack(second)
        (third,) = await claim(queue)
        assert third.item.execution_id == "y"
        # `b` may go as far as its job is concerned, but not its task.
        await queue.ack(first)
        (fourth,) = await claim(queue, limit=1)
        assert fourth.item.execution_id == "b"
        await queue.put([of_job("d", "job", of_task=2)])
        await queue.ack(fourth)

        assert await queue.cancel("c") is Cancelled.REMOVED

        assert ids(await claim(queue)) in (["d"], ["z"])

    @pytest.mark.parametrize("others_first", [False, True])
    async def test_everything_limited_is_done_in_the_end(self, queue: Queue, others_first: bool) -> None:
        capacities = {"wide": 7, "narrow": 1, "free": 1_000}
        items = [
            of_job(f"{task}/{job}/{number}", f"{job}", capacity=1 + job % 2, of_task=capacities[task], task_id=task)
            for task in capacities
            for job in range(6)
            for number in range(8)
        ]
        await queue.put(items[::2] if others_first else items)
        await queue.put(items)
        running: list[Lease] = []
        done: list[str] = []

        while leases := await claim(queue, limit=5) or running:
            running = [*running, *(lease for lease in leases if lease not in running)]
            tasks = Counter(lease.item.task_id for lease in running)
            jobs = Counter(limit for lease in running for limit in lease.item.limits)
            assert all(tasks[task] <= capacity for task, capacity in capacities.items())
            assert all(count <= limit.capacity for limit, count in jobs.items())
            lease = running.pop(len(done) * 7 % len(running))
            await queue.ack(lease)
            done.append(lease.item.execution_id)

        assert sorted(done) == sorted(item.execution_id for item in items)
        assert await queue.stats() == {}

    async def test_concurrent_clients_never_exceed_any_limit(self, queue: Queue, clients: Sequence[Queue]) -> None:
        items = [of_job(f"{number}", f"{number % 9}", of_task=5, task_id=f"{number % 3}") for number in range(180)]
        await asyncio.gather(*(client.put(items[number::50]) for number, client in enumerate(clients)))
        holding: Counter[str] = Counter()
        done: list[str] = []
        broken: list[Limit] = []

        async def work(number: int, client: Queue) -> None:
            while len(done) < len(items):
                leases = await claim(client, worker=f"worker {number}", limit=2)
                for limit in (limit for lease in leases for limit in lease.item.limits):
                    # Granted by the server earlier, and given back to it later, than is counted here.
                    holding[limit.key] += 1
                    if holding[limit.key] > limit.capacity:
                        broken.append(limit)
                await asyncio.sleep(0)
                for turn, lease in enumerate(leases):
                    for limit in lease.item.limits:
                        holding[limit.key] -= 1
                    if number % 5 == 0 and turn:
                        await client.release(lease, delay=0.0)
                    else:
                        done.append(lease.item.execution_id)
                        await client.ack(lease)

        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(*(work(number, client) for number, client in enumerate(clients)))

        assert broken == []
        assert len(set(done)) == len(done) == len(items)

    # Views and wake-ups

    async def test_held_items_are_counted_shown_and_can_be_cancelled(self, queue: Queue) -> None:
        items = [limited(f"{number}", 1) for number in range(4)]
        await queue.put(items)
        lease = await claim_one(queue)
        free = an_item("free", task_id="free")
        await queue.put([free])

        stats = (await queue.stats())["lane"]
        assert (stats.waiting, stats.held, stats.leased, stats.delayed) == (1, 3, 1, 0)
        assert list(await queue.peek("lane", 10)) == [free, *items[1:]]
        assert list(await queue.peek("lane", 2)) == [free, items[1]]
        assert await queue.contains(["1", "2", "3"]) == {"1", "2", "3"}
        assert await queue.cancel("1") is Cancelled.REMOVED
        assert await queue.cancel("1") is Cancelled.ABSENT
        await queue.ack(lease)
        assert sorted(ids(await claim(queue))) == ["2", "free"]
        assert (await queue.stats())["lane"].held == 1

    async def test_it_tells_which_limit_keeps_an_execution_waiting(
        self, queue: Queue, now: Callable[[], float]
    ) -> None:
        await queue.put([of_job("a1", "a", of_task=2), of_job("a2", "a", of_task=2), of_job("b", "b", of_task=2)])
        later = an_item("later", due_at=now() + 1_000.0, limits=of_job("", "a").limits)
        await queue.put([of_job("c", "c", of_task=2), later, an_item("free", task_id="free")])
        everything = ["a1", "a2", "b", "c", "later", "free", "absent"]
        assert await queue.held_by([]) == await queue.held_by(everything) == {}

        await claim(queue, limit=2)

        assert await queue.held_by(everything) == {
            "a2": a_limit(job_key("task", "a"), 1),
            "c": a_limit(task_key("task"), 2),
        }
        await queue.set_limit(task_key("free"), 0)
        assert await queue.held_by(["free"]) == {"free": a_limit(task_key("free"), 0)}

    async def test_what_may_go_again_wakes_who_waits(self, queue: Queue, other: Queue) -> None:
        await queue.put([limited("1", 1), limited("2", 1)])
        lease = await claim_one(queue)
        assert list(await claim(other)) == []
        waiting = asyncio.create_task(wait_and_claim(other))
        await asyncio.sleep(0.1)
        assert not waiting.done()

        await queue.set_limit(task_key("other"), 1)
        await queue.ack(lease)

        assert ids(await asyncio.wait_for(waiting, DEADLINE)) == ["2"]


async def wait_and_claim(queue: Queue) -> Sequence[Lease]:
    """What can be claimed once something can."""
    while True:
        await queue.wait(["lane"], DEADLINE * 100)
        if leases := await claim(queue):
            return leases
