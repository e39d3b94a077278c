"""Fixtures for the tests of core and of every plugin, and which of them may run beside each other."""

from __future__ import annotations

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

pytest_plugins = ["tests.services.fixtures"]

#: Tests below these start containers and use both cores: one after the other, in one process of a parallel run.
_HEAVY = ("tests/chaos/", "tests/end_to_end/", "plugins/")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """How a parallel run is shared out."""
    return _ByWeight(config, log)


class _ByWeight(LoadScopeScheduling):
    """What is heavy stays in one process; all else goes file by file to whichever is free."""

    def _split_scope(self, nodeid: str) -> str:
        return "heavy" if nodeid.startswith(_HEAVY) else nodeid.partition("::")[0]
