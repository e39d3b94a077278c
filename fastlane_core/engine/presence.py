"""The processes of a deployment, as they tell of themselves in the storage; and who must not work beside whom."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import structlog

from fastlane_core import __version__
from fastlane_core.contracts.storage import SharedValue, Storage
from fastlane_core.engine.machine import Machine
from fastlane_core.errors import RevisionConflict, SettingsError, StorageUnavailable
from fastlane_core.models import Json, JsonObject

log = structlog.get_logger(__name__)

#: Scopes of the shared state in which workers and APIs report.
WORKERS_SCOPE, APIS_SCOPE = "workers", "apis"
#: Seconds between two reports without news, and after which a process that did not report is taken for dead.
REPORT_SECONDS = 5.0
DEAD_AFTER_SECONDS = 60.0
#: Seconds in which a process that lives reports again, also when it is held up, and between two looks whether it did.
_SIGN_OF_LIFE_SECONDS = 2 * REPORT_SECONDS + 2.0
_LOOK_SECONDS = 0.25


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """What a process tells of itself besides what it does."""

    machine: Machine = field(default_factory=Machine.this)
    #: Names of the storage and the queue that it works with.
    storage: str = ""
    queue: str = ""
    #: Those of its settings that work within one machine only: `STORAGE = sqlite`.
    one_machine: tuple[str, ...] = ()


class Presence:
    """One process's entry among those of its kind."""

    def __init__(
        self, storage: Storage, clock: Callable[[], float], identity: Identity, *, scope: str, name: str
    ) -> None:
        self._storage = storage
        self._clock = clock
        self._identity = identity
        self._scope = scope
        self._name = name

    async def enter(self, details: JsonObject) -> None:
        """Take the name, report for the first time, and look who else is there.

        A namesake that may live is given some seconds to show it. Raises SettingsError where it does, or where this
        process must not work beside the others; StorageUnavailable.
        """
        while True:
            before = await self._storage.get_state(self._scope, self._name)
            if before is not None and self._may_live(before.value):
                before = await self._wait_for_sign_of_life(before)
            with suppress(RevisionConflict):
                revision = 0 if before is None else before.revision
                await self._storage.put_state(self._scope, self._name, self._report(details), revision=revision)
                break
        try:
            await check_company(self._storage, self._identity, now=self._clock(), besides=(self._scope, self._name))
        except SettingsError:
            await self.leave()
            raise

    async def tell(self, details: JsonObject) -> None:
        """Report, and forget who has not for long. Raises StorageUnavailable."""
        await self._storage.put_state(self._scope, self._name, self._report(details), revision=None)
        now = self._clock()
        for name, value in (await self._storage.list_state(self._scope)).items():
            if not _is_recent(value.value, now):
                await self._storage.delete_state(self._scope, name)

    async def keep_telling(self, details: JsonObject) -> None:
        """Report what does not change, until cancelled."""
        while True:
            with suppress(StorageUnavailable):
                await self.tell(details)
            await asyncio.sleep(REPORT_SECONDS)

    async def leave(self) -> None:
        """Say good-bye. Raises StorageUnavailable."""
        await self._storage.delete_state(self._scope, self._name)

    def _report(self, details: JsonObject) -> dict[str, Json]:
        identity = self._identity
        return {
            "host": identity.machine.host,
            "pid": os.getpid(),
            "version": __version__,
            "at": self._clock(),
            "machine": identity.machine.as_json(),
            "queue": identity.queue,
            **details,
        }

    def _may_live(self, report: JsonObject) -> bool:
        pid = report.get("pid")
        has_ended = isinstance(pid, int) and self._identity.machine.has_ended(Machine.told(report), pid)
        return _is_recent(report, self._clock()) and not has_ended

    async def _wait_for_sign_of_life(self, before: SharedValue) -> SharedValue | None:
        """What is there of the namesake when it has been silent for long enough; raises SettingsError if it was not."""
        log.info("waiting whether another process of this name lives", name=self._name)
        loop = asyncio.get_running_loop()
        until = loop.time() + _SIGN_OF_LIFE_SECONDS
        while True:
            # Before the look: what was held up itself must not miss the sign.
            is_last = loop.time() >= until
            now = await self._storage.get_state(self._scope, self._name)
            if now is None:
                return None
            if now.revision != before.revision:
                raise SettingsError(
                    f"{_who(self._scope, self._name, now.value)} has this name and lives: give this one another (-i), "
                    f"or none"
                )
            if is_last:
                return before
            await asyncio.sleep(_LOOK_SECONDS)


async def live_reports(storage: Storage, scope: str, *, now: float) -> Mapping[str, JsonObject]:
    """The reports of the processes of one scope that live, by name. Raises StorageUnavailable."""
    found = await storage.list_state(scope)
    return {name: value.value for name, value in found.items() if _is_recent(value.value, now)}


async def check_company(
    storage: Storage, identity: Identity, *, now: float, besides: tuple[str, str] | None = None
) -> None:
    """Raise SettingsError if this process must not work beside those that live; `besides` is its own entry.

    They must use the same queue, and be on this machine if the storage or the queue works within one machine only.
    Raises StorageUnavailable.
    """
    for scope in (WORKERS_SCOPE, APIS_SCOPE):
        for name, report in (await live_reports(storage, scope, now=now)).items():
            if (scope, name) != besides and (problem := _misfit(identity, report)):
                raise SettingsError(
                    f"{_who(scope, name, report)} {problem} (A process that is gone is forgotten after "
                    f"{DEAD_AFTER_SECONDS:g} s.)"
                )


async def api_binds(storage: Storage, *, now: float) -> frozenset[str]:
    """The addresses that the deployment's APIs listen on. Raises StorageUnavailable."""
    reports = (await live_reports(storage, APIS_SCOPE, now=now)).values()
    return frozenset(bind for report in reports if isinstance(bind := report.get("bind"), str))


def _misfit(identity: Identity, report: JsonObject) -> str:
    """Why a process must not work beside the one that reported, as the rest of a sentence; "" if it may."""
    machine = Machine.told(report)
    if identity.one_machine and identity.machine.is_other(machine):
        return (
            f"belongs to the same deployment, but this is the machine {identity.machine.host}: "
            f"{' and '.join(identity.one_machine)} works within one machine only. Run all processes on one, or choose "
            f"a storage and a queue that are servers."
        )
    queue = report.get("queue")
    if identity.queue and isinstance(queue, str) and queue not in ("", identity.queue):
        return (
            f"uses the queue {queue}, but this process QUEUE = {identity.queue}: with two queues jobs could run twice. "
            f"Give all processes the same settings."
        )
    return ""


def _who(scope: str, name: str, report: JsonObject) -> str:
    what = f"the worker {name}" if scope == WORKERS_SCOPE else "an API"
    return f"{what} (process {report.get('pid')} on {report.get('host')})"


def _is_recent(report: JsonObject, now: float) -> bool:
    at = report.get("at")
    return isinstance(at, int | float) and now - at <= DEAD_AFTER_SECONDS
