"""Tests of a storage's shared state."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from fastlane_core.contracts.storage import SharedValue, Storage
from fastlane_core.errors import RevisionConflict
from fastlane_core.models import JsonObject
from fastlane_core.testing.examples import ODD_TEXTS
from fastlane_core.testing.storage_fixtures import CLIENTS, StorageFixtures, count_winners


class StorageStateTests(StorageFixtures):
    """Small values that plugins share: overwrite, add only, compare-and-set."""

    async def test_a_value_that_was_never_stored_is_none(self, storage: Storage) -> None:
        assert await storage.get_state("scope", "key") is None
        assert await storage.list_state("scope") == {}

    async def test_a_value_comes_back_with_its_revision(self, storage: Storage) -> None:
        value: JsonObject = {"text": "ä\x00", "number": 1.5, "list": [None, True, {"deep": []}], "": {}}

        revision = await storage.put_state("scope", "key", value, revision=None)

        assert revision > 0
        assert await storage.get_state("scope", "key") == SharedValue(value=value, revision=revision)

    async def test_revision_none_overwrites(self, storage: Storage) -> None:
        first = await storage.put_state("scope", "key", {"n": 1}, revision=None)
        second = await storage.put_state("scope", "key", {"n": 2}, revision=None)

        assert first != second
        assert await storage.get_state("scope", "key") == SharedValue(value={"n": 2}, revision=second)

    async def test_revision_zero_only_adds(self, storage: Storage) -> None:
        revision = await storage.put_state("scope", "key", {"n": 1}, revision=0)

        with pytest.raises(RevisionConflict):
            await storage.put_state("scope", "key", {"n": 2}, revision=0)

        assert await storage.get_state("scope", "key") == SharedValue(value={"n": 1}, revision=revision)

    async def test_any_other_revision_must_be_the_stored_one(self, storage: Storage) -> None:
        with pytest.raises(RevisionConflict):
            await storage.put_state("scope", "key", {"n": 0}, revision=1)
        first = await storage.put_state("scope", "key", {"n": 1}, revision=0)
        second = await storage.put_state("scope", "key", {"n": 2}, revision=first)

        with pytest.raises(RevisionConflict):
            await storage.put_state("scope", "key", {"n": 3}, revision=first)

        assert await storage.get_state("scope", "key") == SharedValue(value={"n": 2}, revision=second)

    async def test_one_write_of_each_revision_of_a_value_wins(
        self, storage: Storage, clients: Sequence[Storage]
    ) -> None:
        adding = [client.put_state("scope", "key", {"n": n}, revision=0) for n, client in enumerate(clients)]
        assert await count_winners(adding) == 1

        found = await storage.get_state("scope", "key")
        assert found is not None
        changing = [
            client.put_state("scope", "key", {"n": n}, revision=found.revision) for n, client in enumerate(clients)
        ]
        assert await count_winners(changing) == 1

    async def test_no_change_of_a_value_is_lost_in_a_race(self, storage: Storage, clients: Sequence[Storage]) -> None:
        async def count_up(client: Storage) -> None:
            while True:
                found = await client.get_state("scope", "counter")
                count = found.value["count"] if found else 0
                assert isinstance(count, int)
                try:
                    await client.put_state(
                        "scope", "counter", {"count": count + 1}, revision=found.revision if found else 0
                    )
                except RevisionConflict:
                    continue
                return

        await asyncio.gather(*(count_up(client) for client in clients))

        final = await storage.get_state("scope", "counter")
        assert final is not None
        assert final.value == {"count": CLIENTS}

    async def test_a_scope_lists_its_own_values(self, storage: Storage) -> None:
        await storage.put_state("one", "a", {"n": 1}, revision=None)
        await storage.put_state("one", "b", {"n": 2}, revision=None)
        await storage.put_state("two", "a", {"n": 3}, revision=None)

        assert {key: each.value for key, each in (await storage.list_state("one")).items()} == {
            "a": {"n": 1},
            "b": {"n": 2},
        }
        assert (await storage.list_state("one"))["a"] == await storage.get_state("one", "a")

    async def test_a_deleted_value_is_gone(self, storage: Storage) -> None:
        await storage.put_state("scope", "key", {"n": 1}, revision=None)
        await storage.put_state("scope", "other", {"n": 2}, revision=None)

        await storage.delete_state("scope", "key")
        await storage.delete_state("scope", "key")

        assert await storage.get_state("scope", "key") is None
        assert set(await storage.list_state("scope")) == {"other"}
        assert await storage.put_state("scope", "key", {"n": 3}, revision=0) > 0

    @pytest.mark.parametrize("text", ODD_TEXTS)
    async def test_scope_key_and_value_may_be_any_text(self, storage: Storage, text: str) -> None:
        value: JsonObject = {text: [text]}
        revision = await storage.put_state(text, text, value, revision=0)
        await storage.put_state(text, text + "\x00", {}, revision=0)

        expected = SharedValue(value=value, revision=revision)
        assert await storage.get_state(text, text) == expected
        assert (await storage.list_state(text))[text] == expected
        await storage.delete_state(text, text)
        assert set(await storage.list_state(text)) == {text + "\x00"}
