"""MongoDB as a plugin: the storage named `mongo`, and its settings. Needs the driver only where it is chosen."""

from __future__ import annotations

from collections.abc import Iterable

from fastlane_core.builtin.mongo.settings import MongoSettings
from fastlane_core.contracts.storage import Storage
from fastlane_core.errors import PluginError
from fastlane_core.hookspecs import PluginContext, SettingsSection, StoragePlugin, hookimpl

_DRIVER = ("pymongo", "bson")


@hookimpl
def fastlane_settings() -> Iterable[SettingsSection]:
    """The section of MongoDB."""
    yield SettingsSection(title="MongoDB", model=MongoSettings, bare_environment=frozenset({"MONGODB_CONFIG"}))


@hookimpl
def fastlane_storages() -> Iterable[StoragePlugin]:
    """The storage `mongo`."""
    yield StoragePlugin(name="mongo", create=_create_storage)


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
