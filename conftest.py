"""Fixtures for the tests of core and of every plugin, and which of them may run beside each other."""

from __future__ import annotations

import pytest

pytest_plugins = ["tests.services.fixtures"]

#: Tests below these start containers and use both cores: one after the other, in one process of a parallel run.
_HEAVY = ("tests/chaos", "tests/end_to_end", "plugins")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Group tests for pytest-xdist's `--dist loadgroup`: what is heavy by itself, all else by file."""
    for item in items:
        path = item.path.relative_to(config.rootpath).as_posix()
        group = "heavy" if path.startswith(_HEAVY) else path
        item.add_marker(pytest.mark.xdist_group(group))
