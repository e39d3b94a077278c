"""SQLite as a plugin: the storage and the queue named `sqlite`, and their settings."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import BaseModel, Field

from fastlane_core.builtin.sqlite.queue import SqliteQueue
from fastlane_core.builtin.sqlite.storage import SqliteStorage
from fastlane_core.hookspecs import (
    CheckContext,
    Finding,
    Level,
    PluginContext,
    QueuePlugin,
    SettingsSection,
    StoragePlugin,
    hookimpl,
)

#: Bytes of free disk under which it is warned.
_LITTLE_BYTES = 2**30


class SqliteSettings(BaseModel):
    """Settings of the SQLite storage and queue."""

    sqlite_path: str = Field(
        "fastlane-data/fastlane.db",
        min_length=1,
        description="File of the SQLite storage and queue, on a local disk; made, with its folder, if missing.",
    )
    sqlite_busy_seconds: float = Field(
        10.0,
        gt=0,
        le=600,
        description="Seconds to wait while another process keeps the SQLite file locked.",
    )
    sqlite_readers: int = Field(3, ge=1, le=64, description="Threads of each process that read the SQLite file.")


@hookimpl
def fastlane_settings() -> Iterable[SettingsSection]:
    """The section of SQLite."""
    yield SettingsSection(title="SQLite", model=SqliteSettings)


@hookimpl
def fastlane_storages() -> Iterable[StoragePlugin]:
    """The storage `sqlite`."""
    yield StoragePlugin(name="sqlite", create=_create_storage, one_machine=True)


@hookimpl
def fastlane_queues() -> Iterable[QueuePlugin]:
    """The queue `sqlite`."""
    yield QueuePlugin(name="sqlite", create=_create_queue, one_machine=True)


@hookimpl
async def fastlane_checks(context: CheckContext) -> Sequence[Finding]:
    """Whether there is room on the disk."""
    if "sqlite" not in (context.storage, context.queue):
        return []
    path = Path(context.settings.section(SqliteSettings).sqlite_path)
    return await asyncio.to_thread(_check_disk, path)


def _check_disk(path: Path) -> Sequence[Finding]:
    folder = next(each for each in path.resolve().parents if each.exists())
    usage = shutil.disk_usage(folder)
    room = f"{usage.free / 2**30:.1f} GiB are free for {path}"
    if usage.free < _LITTLE_BYTES:
        advice = "Make room, or have executions removed earlier: when the disk is full, no job is accepted."
        return [Finding(level=Level.WARNING, subject="disk of SQLite", message=f"only {room}", advice=advice)]
    return [Finding(level=Level.OK, subject="disk of SQLite", message=room)]


def _create_storage(context: PluginContext) -> SqliteStorage:
    settings = context.settings.section(SqliteSettings)
    return SqliteStorage(
        Path(settings.sqlite_path), busy_seconds=settings.sqlite_busy_seconds, readers=settings.sqlite_readers
    )


def _create_queue(context: PluginContext) -> SqliteQueue:
    settings = context.settings.section(SqliteSettings)
    return SqliteQueue(
        Path(settings.sqlite_path),
        clock=context.clock,
        busy_seconds=settings.sqlite_busy_seconds,
        readers=settings.sqlite_readers,
    )
