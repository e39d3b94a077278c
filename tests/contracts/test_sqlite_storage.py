"""The storage suite over SQLite."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastlane_core.builtin.sqlite.storage import SqliteStorage
from fastlane_core.testing.storage_fixtures import BuildStorage
from fastlane_core.testing.storage_suite import StorageSuite


class TestSqliteStorage(StorageSuite):
    """Everything over one file, in one process."""

    @pytest.fixture
    def build_storage(self, tmp_path: Path) -> BuildStorage:
        return lambda: SqliteStorage(tmp_path / "fastlane.db")
