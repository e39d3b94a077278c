"""Tests of what a queue tells about itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fastlane_core.contracts.queue import LaneStats, Queue
from fastlane_core.testing.examples import an_item
from fastlane_core.testing.queue_fixtures import Advance, QueueFixtures, claim, claim_one


class QueueViewTests(QueueFixtures):
    """Contains, peek and stats."""

    async def test_contains_tells_what_waits_or_is_leased(self, queue: Queue, now: Callable[[], float]) -> None:
        await queue.put([an_item("leased"), an_item("delayed", due_at=now() + 100.0), an_item("other", lane="other")])
        await claim_one(queue)

        found = await queue.contains(["leased", "delayed", "other", "absent", "leased"])

        assert found == {"leased", "delayed", "other"}
        assert await queue.contains([]) == frozenset()

    async def test_contains_takes_many_ids(self, queue: Queue) -> None:
        await queue.put([an_item(f"{number}") for number in range(0, 3_000, 3)])

        found = await queue.contains([f"{number}" for number in range(3_000)])

        assert found == {f"{number}" for number in range(0, 3_000, 3)}

    async def test_peek_shows_what_would_be_granted_next(self, queue: Queue, now: Callable[[], float]) -> None:
        items = [an_item("leased", priority=9), an_item("low"), an_item("high", priority=5), an_item("last")]
        await queue.put([*items, an_item("delayed", priority=9, due_at=now() + 100.0)])
        await claim_one(queue)

        assert list(await queue.peek("lane", 10)) == [items[2], items[1], items[3]]
        assert list(await queue.peek("lane", 2)) == [items[2], items[1]]
        assert list(await queue.peek("nowhere", 10)) == []
        assert [lease.item for lease in await claim(queue)] == [items[2], items[1], items[3]]

    async def test_peek_shows_delayed_items_once_they_are_due(
        self, queue: Queue, now: Callable[[], float], advance: Advance
    ) -> None:
        due_at = now() + 2.0
        await queue.put([an_item("later", due_at=due_at, priority=1), an_item("now")])
        await advance(2.5)

        items = await queue.peek("lane", 10)

        assert [item.execution_id for item in items] == ["later", "now"]
        assert items[0].due_at == pytest.approx(due_at)

    async def test_stats_count_every_lane(self, queue: Queue, now: Callable[[], float]) -> None:
        due_at = now() + 100.0
        await queue.put([an_item() for _ in range(5)])
        await queue.put([an_item(due_at=due_at + number) for number in range(3)])
        await queue.put([an_item(lane="other")])
        leases = await claim(queue, limit=2)
        await queue.assign(leases[0], [("place", 1)])

        stats = await queue.stats()

        lane = stats["lane"]
        assert set(stats) == {"lane", "other"}
        assert (lane.waiting, lane.delayed, lane.leased) == (3, 3, 2)
        assert lane.next_due_at == pytest.approx(due_at)
        assert lane.places == {"place": 1}
        assert (stats["other"].waiting, stats["other"].next_due_at) == (1, None)

    async def test_stats_of_an_empty_queue_are_empty(self, queue: Queue) -> None:
        assert await queue.stats() == {}
        await queue.put([an_item("gone"), an_item("acked", lane="other")])
        await queue.cancel("gone")
        await queue.ack(await claim_one(queue, "other"))

        assert await queue.stats() == {}

    async def test_stats_count_as_waiting_what_has_become_due(
        self, queue: Queue, now: Callable[[], float], advance: Advance
    ) -> None:
        await queue.put([an_item(due_at=now() + 1.0), an_item(due_at=now() + 1_000.0)])
        assert counts((await queue.stats())["lane"]) == (0, 2, 0)

        await advance(2.0)

        assert counts((await queue.stats())["lane"]) == (1, 1, 0)
        await claim(queue)
        assert counts((await queue.stats())["lane"]) == (0, 1, 1)

    async def test_stats_count_leases_that_nobody_has_adopted(self, queue: Queue, advance: Advance) -> None:
        await queue.put([an_item(f"{number}") for number in range(4)])
        leases = await claim(queue)
        await queue.hand_over(leases[:1])
        await queue.put([an_item("waiting")])
        assert await run_out(queue) == (1, 4)

        await queue.renew(leases[1:2], 2.0)
        await advance(2.5)
        assert await run_out(queue) == (2, 4)

        await claim(queue, worker="second", limit=2)
        assert await run_out(queue) == (0, 4)

    async def test_stats_stay_right_through_every_step(self, queue: Queue, advance: Advance) -> None:
        await queue.put([an_item(f"{number}") for number in range(6)])
        await queue.put([an_item(f"{number}") for number in range(6)])
        leases = await claim(queue, limit=4, lease_seconds=2.0)
        await queue.ack(leases[0])
        await queue.ack(leases[0])
        await queue.release(leases[1], delay=1_000.0)
        await queue.release(leases[1], delay=1_000.0)
        await queue.cancel("5")
        assert counts((await queue.stats())["lane"]) == (1, 1, 2)

        await advance(2.5)
        adopted = await claim(queue, worker="second", capacity=2)
        assert counts((await queue.stats())["lane"]) == (1, 1, 2)
        for lease in adopted:
            await queue.ack(lease)

        assert counts((await queue.stats())["lane"]) == (1, 1, 0)


def counts(stats: LaneStats) -> tuple[int, int, int]:
    """Waiting, delayed, leased."""
    return stats.waiting, stats.delayed, stats.leased


async def run_out(queue: Queue) -> tuple[int, int]:
    """Leases that nobody has adopted, and all."""
    stats = (await queue.stats())["lane"]
    return stats.run_out, stats.leased
