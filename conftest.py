"""Fixtures for the tests of core and of every plugin, and which of them may run beside each other."""

from __future__ import annotations

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

pytest_plugins = ["tests.services.fixtures"]

#: Tests below these work with containers, and mostly wait for them: each group one after the other, in one process of a
#: parallel run. They take longest, and so begin first.
_HEAVY = {"tests/chaos/": "end to end", "tests/end_to_end/": "end to end", "plugins/": "plugins"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what is heavy first."""
    items.sort(key=lambda item: _group(item.nodeid) is None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """How a parallel run is shared out."""
    # By the number of tests, which tells little of how long they take.
    config.option.loadscopereorder = False
    return _ByWeight(config, log)


class _ByWeight(LoadScopeScheduling):
    """A group of what is heavy stays in one process; all else goes file by file to whichever is free."""

    def _split_scope(self, nodeid: str) -> str:
        return _group(nodeid) or nodeid.partition("::")[0]


def _group(nodeid: str) -> str | None:
    return next((group for folder, group in _HEAVY.items() if nodeid.startswith(folder)), None)
