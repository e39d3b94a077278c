"""Hosts that get nothing new: blacklisted by an operator, until that is taken back, and known to every worker.

A cordon with a deadline drains: what still runs on the host when it passes is stopped, to be tried again elsewhere, or
left alone and shown to be late.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from fastlane_core.contracts.storage import Storage
from fastlane_core.models import Json, JsonObject

_SCOPE = "docker.cordons"


class Then(StrEnum):
    """What becomes of runs that are still there at the deadline of a drain."""

    WAIT = "wait"
    STOP = "stop"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cordon:
    """One host's."""

    since: float
    #: Whether it is a drain: its progress is shown.
    drains: bool = False
    #: Unix time by which the host is to be empty; None for no hurry.
    deadline: float | None = None
    then: Then = Then.WAIT

    def stops_runs(self, now: float) -> bool:
        """Whether runs on the host are to be stopped."""
        return self.then is Then.STOP and self.deadline is not None and now >= self.deadline

    def shape(self) -> dict[str, Json]:
        """As JSON, for the storage."""
        return {"since": self.since, "drains": self.drains, "deadline": self.deadline, "then": self.then.value}


async def cordons(storage: Storage) -> Mapping[str, Cordon]:
    """All cordons by key of their host. Raises StorageUnavailable."""
    return {host: _cordon(each.value) for host, each in (await storage.list_state(_SCOPE)).items()}


async def put_cordon(storage: Storage, host: str, cordon: Cordon) -> None:
    """Cordon a host, replacing what was said of it before. Raises StorageUnavailable."""
    await storage.put_state(_SCOPE, host, cordon.shape(), revision=None)


async def lift_cordon(storage: Storage, host: str) -> None:
    """Let a host take runs again; no error if it could. Raises StorageUnavailable."""
    await storage.delete_state(_SCOPE, host)


def _cordon(value: JsonObject) -> Cordon:
    deadline, since = value.get("deadline"), value.get("since")
    return Cordon(
        since=float(since) if isinstance(since, int | float) else 0.0,
        drains=bool(value.get("drains")),
        deadline=float(deadline) if isinstance(deadline, int | float) else None,
        then=Then(str(value.get("then", Then.WAIT))),
    )
