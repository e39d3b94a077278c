"""Settings from environment variables: `FASTLANE_KEY`, and for some keys the bare name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from fastlane_core.settings.values import Given

PREFIX = "FASTLANE_"
#: Variables with the prefix that are no settings: the client's server, and where the settings are.
RESERVED_ENVIRONMENT = frozenset({"FASTLANE_URL", "FASTLANE_CONFIG"})

_SERVICE_HOST = re.compile(r"(FASTLANE(?:_\w+)?)_SERVICE_HOST")


def read_environment(environment: Mapping[str, str], bare: Iterable[str]) -> list[Given]:
    """What the environment sets, weakest first: the `bare` keys, then everything with the prefix.

    A bare variable that is empty counts as not set: it was hardly meant for Fastlane. Variables by which Kubernetes
    tells of a service named like Fastlane are left out.
    """
    given = [
        Given(key, environment[key], f"environment variable {key}", is_text=True)
        for key in sorted(bare)
        if environment.get(key)
    ]
    links = _service_links(environment)
    for name in sorted(environment):
        if name.startswith(PREFIX) and name not in RESERVED_ENVIRONMENT and not (links and links.fullmatch(name)):
            key = name.removeprefix(PREFIX)
            given.append(Given(key, environment[name], f"environment variable {name}", is_text=True))
    return given


def _service_links(environment: Mapping[str, str]) -> re.Pattern[str] | None:
    """Names of what Kubernetes adds to each container for services of its namespace (FASTLANE_PORT_80_TCP_ADDR)."""
    services = [match[1] for name in environment if (match := _SERVICE_HOST.fullmatch(name))]
    if not services:
        return None
    return re.compile(
        rf"({'|'.join(map(re.escape, services))})"
        r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
    )
