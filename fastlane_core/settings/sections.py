"""The keys that sections define."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fastlane_core.errors import PluginError
from fastlane_core.hookspecs import SettingsSection


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a section."""

    #: In upper case.
    name: str
    field_name: str
    field: FieldInfo
    section: SettingsSection

    def default(self) -> object:
        """The value that it has when nobody sets it, as the model holds it."""
        return self.field.get_default(call_default_factory=True, validated_data={})


def keys_of(section: SettingsSection) -> Sequence[Key]:
    """The section's keys in order. Raises PluginError for a field that cannot be a key."""
    keys = []
    for name, field in section.model.model_fields.items():
        key = Key(name.upper(), name, field, section)
        if field.is_required():
            raise PluginError(f"the settings section {section.title!r} gives {key.name} no default")
        if not field.description:
            raise PluginError(f"the settings section {section.title!r} gives {key.name} no description")
        if field.alias or field.validation_alias:
            raise PluginError(f"the settings section {section.title!r} gives {key.name} an alias: a key has one name")
        keys.append(key)
    if unknown := section.bare_environment - {key.name for key in keys}:
        raise PluginError(
            f"the settings section {section.title!r} reads {', '.join(sorted(unknown))} from the environment, "
            "but defines no such key"
        )
    return keys


def keys_by_name(sections: Iterable[SettingsSection]) -> dict[str, Key]:
    """All keys of all sections. Raises PluginError for one that two sections define, or a model used twice."""
    keys: dict[str, Key] = {}
    models: dict[type[BaseModel], SettingsSection] = {}
    for section in sections:
        if section.model in models:
            raise PluginError(f"the settings section {section.title!r} is declared twice")
        models[section.model] = section
        for key in keys_of(section):
            if key.name in keys:
                raise PluginError(
                    f"the setting {key.name} is defined twice: in the sections "
                    f"{keys[key.name].section.title!r} and {section.title!r}"
                )
            keys[key.name] = key
    return keys
