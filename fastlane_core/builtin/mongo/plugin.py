"""MongoDB as a plugin: the storage named `mongo`, and its settings. Needs the driver only where it is chosen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.util import find_spec

from fastlane_core.builtin.mongo.settings import MongoSettings
from fastlane_core.contracts.storage import Storage
from fastlane_core.errors import PluginError
from fastlane_core.hookspecs import (
    CheckContext,
    Finding,
    PluginContext,
    SettingsSection,
    StoragePlugin,
    hookimpl,
)

_DRIVER = ("pymongo", "bson")


@hookimpl
def fastlane_settings() -> Iterable[SettingsSection]:
    """The section of MongoDB."""
    yield SettingsSection(title="MongoDB", model=MongoSettings, bare_environment=frozenset({"MONGODB_CONFIG"}))


@hookimpl
def fastlane_storages() -> Iterable[StoragePlugin]:
    """The storage `mongo`."""
    yield StoragePlugin(name="mongo", create=_create_storage)


@hookimpl
async def fastlane_checks(context: CheckContext) -> Sequence[Finding]:
    """Version, members, indexes, and room on the disk."""
    # Without the driver there is no storage to check, and that is told where it is built.
    if context.storage != "mongo" or find_spec("pymongo") is None:
        return []
    from fastlane_core.builtin.mongo.checks import check_servers
    from fastlane_core.builtin.mongo.server import MongoServer

    url, database, options = context.settings.section(MongoSettings).connection()
    return await check_servers(MongoServer(url=url, database=database, options=options))


def _create_storage(context: PluginContext) -> Storage:
    try:
        from fastlane_core.builtin.mongo.server import MongoServer
        from fastlane_core.builtin.mongo.storage import MongoStorage
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _DRIVER:
            raise
        raise PluginError(
            "the storage mongo needs MongoDB's driver, which is not installed: pip install 'fastlane-core[mongo]', or "
            "choose another storage with STORAGE"
        ) from error
    settings = context.settings.section(MongoSettings)
    url, database, options = settings.connection()
    return MongoStorage(
        MongoServer(url=url, database=database, options=options), timeout=settings.mongodb_timeout_seconds
    )
