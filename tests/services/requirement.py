"""What happens when a server cannot be had."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def missing(server: str, why: str) -> NoReturn:
    """Skip the test, or fail it where the run must have every server."""
    message = f"{server}: {why}"
    if os.environ.get("REQUIRE_SERVICES") == "1":
        pytest.fail(f"{message} (REQUIRE_SERVICES=1)", pytrace=False)
    pytest.skip(message)
