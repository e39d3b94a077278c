"""What registration hooks yield, checked, with the plugin that each record came from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from fastlane_core.errors import PluginError
from fastlane_core.hookspecs import (
    ErrorReporterPlugin,
    MetricsPlugin,
    NotifierPlugin,
    QueuePlugin,
    RunnerPlugin,
    SettingsSection,
    StoragePlugin,
)
from fastlane_core.settings import CORE_SECTIONS
from fastlane_core.settings.sections import keys_of

Record = TypeVar("Record")

#: The owner of core's own names.
CORE = "Fastlane itself"


class NameTaken(PluginError):
    """Two plugins register the same name: nobody can tell which of them was meant."""


@dataclass(frozen=True, slots=True)
class RecordKind(Generic[Record]):
    """One registration hook and what it yields."""

    hook: str
    type: type[Record]
    #: The names that a record takes, each as what it names and the name: `("runner", "docker")`.
    names: Callable[[Record], Iterable[tuple[str, str]]]


@dataclass(slots=True)
class Collected:
    """What one plugin registers."""

    records: dict[str, Sequence[object]] = field(default_factory=dict)
    names: list[tuple[str, str]] = field(default_factory=list)


@dataclass(slots=True)
class Records:
    """All records of an application's plugins, and who took which name."""

    _by_hook: dict[str, list[object]] = field(default_factory=dict)
    _owners: dict[tuple[str, str], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for section in CORE_SECTIONS:
            for name in SETTINGS.names(section):
                self._owners[name] = CORE

    def of(self, kind: RecordKind[Record]) -> Sequence[Record]:
        """The records of one kind, in the order of their plugins."""
        return [record for record in self._by_hook.get(kind.hook, ()) if isinstance(record, kind.type)]

    def add(self, origin: str, collected: Collected) -> None:
        """Add what the plugin of that origin registers. Raises NameTaken."""
        for name in collected.names:
            take_name(self._owners, name, origin)
        for hook, records in collected.records.items():
            self._by_hook.setdefault(hook, []).extend(records)


def take_name(owners: dict[tuple[str, str], str], name: tuple[str, str], origin: str) -> None:
    """Note that the plugin of that origin owns `name`. Raises NameTaken if it is owned already."""
    if name in owners:
        what, which = name
        other = owners[name]
        by = f"twice by {origin}" if other == origin else f"by {other} and by {origin}"
        raise NameTaken(f"the {what} {which} is registered {by}: block or uninstall one of them")
    owners[name] = origin


def collect(kind: RecordKind[Record], function: Callable[..., object], **arguments: object) -> Sequence[Record]:
    """What one plugin's hook yields. Raises PluginError for anything but records of that kind."""
    try:
        yielded = function(**arguments)
        if not isinstance(yielded, Iterable) or isinstance(yielded, str | bytes | Mapping):
            raise PluginError(f"its {kind.hook} has to yield records, but returned {_kind_of(yielded)}")
        records = list(yielded)
    except PluginError:
        raise
    except Exception as error:
        raise PluginError(f"its {kind.hook} failed: {said(error)}") from error
    for record in records:
        if not isinstance(record, kind.type):
            raise PluginError(f"its {kind.hook} has to yield {kind.type.__name__}, but yielded {_kind_of(record)}")
    return records


def said(error: BaseException) -> str:
    """An error as part of a sentence: its type and its words."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def _kind_of(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def _keys(section: SettingsSection) -> Iterable[tuple[str, str]]:
    return [("setting", key.name) for key in keys_of(section)]


def _runner_names(record: RunnerPlugin) -> Iterable[tuple[str, str]]:
    option = [("payload field", record.name)] if record.options is not None else []
    return [("runner", record.name), *option]


def _notifier_names(record: NotifierPlugin) -> Iterable[tuple[str, str]]:
    return [("notifier", record.name), *(("payload field", name) for name in record.payload)]


SETTINGS = RecordKind("fastlane_settings", SettingsSection, _keys)
RUNNERS = RecordKind("fastlane_runners", RunnerPlugin, _runner_names)
STORAGES = RecordKind("fastlane_storages", StoragePlugin, lambda record: [("storage", record.name)])
QUEUES = RecordKind("fastlane_queues", QueuePlugin, lambda record: [("queue", record.name)])
NOTIFIERS = RecordKind("fastlane_notifiers", NotifierPlugin, _notifier_names)
ERROR_REPORTERS = RecordKind(
    "fastlane_error_reporters", ErrorReporterPlugin, lambda record: [("error reporter", record.name)]
)
METRICS = RecordKind("fastlane_metrics", MetricsPlugin, lambda record: [("metrics sink", record.name)])


_AT_LOAD: tuple[RecordKind[Any], ...] = (
    SETTINGS,
    RUNNERS,
    STORAGES,
    QUEUES,
    NOTIFIERS,
    ERROR_REPORTERS,
    METRICS,
)


def collect_at_load(hooks: Mapping[str, Callable[..., object]]) -> Collected:
    """What one plugin's functions, by hook, yield: those that are called when it is loaded."""
    collected = Collected()
    for kind in _AT_LOAD:
        if kind.hook in hooks:
            records = collect(kind, hooks[kind.hook])
            collected.records[kind.hook] = records
            for record in records:
                collected.names += kind.names(record)
    return collected
