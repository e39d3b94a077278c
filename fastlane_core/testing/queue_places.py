"""Tests of the places that a queue assigns to leases."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

import pytest

from fastlane_core.contracts.queue import Queue
from fastlane_core.errors import LeaseLost
from fastlane_core.testing.examples import an_item
from fastlane_core.testing.queue_fixtures import CLIENTS, Advance, QueueFixtures, claim, claim_one

#: Seconds that a short lease lasts, and after which it has run out.
_SHORT = 2.0
_OVER = 2.5


class QueuePlaceTests(QueueFixtures):
    """Assign and loads."""

    async def test_the_first_offer_with_room_is_assigned(self, queue: Queue) -> None:
        await queue.put([an_item() for _ in range(5)])
        offers = [("small", 1), ("none", 0), ("big", 3)]

        assigned = [await queue.assign(lease, offers) for lease in await claim(queue)]

        assert assigned == ["small", "big", "big", "big", None]
        assert await queue.loads("lane") == {"small": 1, "big": 3}

    async def test_a_place_that_is_offered_is_kept(self, queue: Queue) -> None:
        await queue.put([an_item()])
        lease = await claim_one(queue)
        await queue.assign(lease, [("first", 1)])

        assert await queue.assign(lease, [("better", 5), ("first", 1)]) == "first"
        assert await queue.assign(lease, [("better", 5), ("first", 0)]) == "first"
        assert await queue.loads("lane") == {"first": 1}

    async def test_a_place_that_is_not_offered_any_more_is_left(self, queue: Queue) -> None:
        await queue.put([an_item()])
        lease = await claim_one(queue)
        await queue.assign(lease, [("gone", 1)])

        assert await queue.assign(lease, [("here", 1)]) == "here"
        assert await queue.loads("lane") == {"here": 1}

    async def test_no_offer_gives_no_place(self, queue: Queue) -> None:
        await queue.put([an_item()])
        lease = await claim_one(queue)

        assert await queue.assign(lease, []) is None
        assert await queue.loads("lane") == {}
        assert await queue.loads("nowhere") == {}

    async def test_places_count_within_their_lane(self, queue: Queue) -> None:
        await queue.put([an_item(lane="one"), an_item(lane="two")])
        for lane in ("one", "two"):
            assert await queue.assign(await claim_one(queue, lane), [("place", 1)]) == "place"

        assert await queue.loads("one") == await queue.loads("two") == {"place": 1}

    async def test_a_place_is_kept_through_adoption(self, queue: Queue, advance: Advance) -> None:
        await queue.put([an_item()])
        (lease,) = await claim(queue, lease_seconds=_SHORT)
        await queue.assign(lease, [("place", 1)])
        await advance(_OVER)
        assert await queue.loads("lane") == {"place": 1}

        (adopted,) = await claim(queue, worker="second")

        assert adopted.place == "place"
        assert await queue.loads("lane") == {"place": 1}

    async def test_ack_frees_the_place(self, queue: Queue) -> None:
        await queue.put([an_item()])
        lease = await claim_one(queue)
        await queue.assign(lease, [("place", 1)])

        await queue.ack(lease)

        assert await queue.loads("lane") == {}

    async def test_who_lost_the_lease_gets_no_place(self, queue: Queue, advance: Advance) -> None:
        await queue.put([an_item("adopted"), an_item("removed"), an_item("released")])
        adopted, removed, released = await claim(queue, worker="first", lease_seconds=_SHORT)
        await queue.ack(removed)
        await queue.release(released, delay=100.0)
        await advance(_OVER)
        await claim(queue, worker="second")

        for lost in (adopted, removed, released):
            with pytest.raises(LeaseLost):
                await queue.assign(lost, [("place", 9)])
        assert await queue.loads("lane") == {}

    async def test_concurrent_assignments_never_exceed_a_place(self, queue: Queue, clients: Sequence[Queue]) -> None:
        await queue.put([an_item() for _ in range(CLIENTS)])
        leases = await claim(queue, limit=CLIENTS)

        assigned = await asyncio.gather(
            *(client.assign(lease, [("a", 5), ("b", 10)]) for client, lease in zip(clients, leases, strict=True))
        )

        assert Counter(assigned) == {"a": 5, "b": 10, None: CLIENTS - 15}
        assert await queue.loads("lane") == {"a": 5, "b": 10}
