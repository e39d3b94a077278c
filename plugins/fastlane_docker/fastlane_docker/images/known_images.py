"""Which images a host is known to have, so that new runs are placed where nothing need be pulled.

It is a hint, which is asked at every placement and must cost nothing then: it is filled by pulls, and anew by a list of
the host's images once a minute.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

import structlog
from docker.errors import APIError

from fastlane_core.errors import EngineUnavailable
from fastlane_docker.engines.client import Client
from fastlane_docker.engines.engine import Engine
from fastlane_docker.images.references import Reference, parse_reference

log = structlog.get_logger(__name__)

#: Names remembered per host; the oldest goes for a new one.
_MOST = 10_000
_LIST_SECONDS = 60.0


class KnownImages:
    """The images of one host."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._names: dict[Reference, None] = {}

    def __contains__(self, reference: Reference) -> bool:
        return _key(reference) in self._names

    def add(self, reference: Reference) -> None:
        """The host has it."""
        self.discard(reference)
        if len(self._names) >= _MOST:
            del self._names[next(iter(self._names))]
        self._names[_key(reference)] = None

    def discard(self, reference: Reference) -> None:
        """The host does not have it."""
        self._names.pop(_key(reference), None)

    async def keep_listing(self) -> None:
        """Ask the host for its images now and then, until cancelled."""
        while True:
            try:
                self._names = dict.fromkeys(await self._engine.call("list images", _list))
            except (EngineUnavailable, APIError) as error:
                # Pings tell of an engine out of reach; what was known of its images stays.
                log.debug("cannot list the images of a host", host=self._engine.address.key, error=str(error))
            await asyncio.sleep(_LIST_SECONDS)


def _key(reference: Reference) -> Reference:
    """With a digest, the tag says nothing."""
    return Reference(reference.registry, reference.repository, "", reference.digest) if reference.digest else reference


def _list(client: Client) -> list[Reference]:
    names: list[Reference] = []
    for image in client.images():
        for name in [*(image.get("RepoTags") or ()), *(image.get("RepoDigests") or ())]:
            # What has no name is called <none>, which is no reference.
            with suppress(ValueError):
                names.append(_key(parse_reference(name)))
    return names[:_MOST]
