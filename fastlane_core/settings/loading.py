"""Settings put together from their sources, and what is wrong with them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from pydantic import BaseModel, SecretBytes, SecretStr, ValidationError
from pydantic_core import ErrorDetails, PydanticSerializationError, to_jsonable_python

from fastlane_core.errors import SettingsError
from fastlane_core.hookspecs import SettingsSection
from fastlane_core.redaction import is_secret, redact_url
from fastlane_core.settings.core import CORE_SECTIONS, GeneralSettings
from fastlane_core.settings.elsewhere import NOTICED_BARE, REFUSED_BARE, explain_unknown
from fastlane_core.settings.environment import PREFIX, read_environment
from fastlane_core.settings.file import read_files
from fastlane_core.settings.sections import Key, keys_by_name
from fastlane_core.settings.values import (
    Given,
    admits_only_containers,
    container,
    from_text,
    kind_of,
    why_not_json,
)

Section = TypeVar("Section", bound=BaseModel)

_NO_OVERRIDES: Mapping[str, object] = MappingProxyType({})
_SECRET_WORDS = tuple(GeneralSettings().env_blacklisted_words)
#: Errors whose text a plugin wrote, or that quote the value.
_OUTSPOKEN = ("value_error", "assertion_error", "union_tag_invalid")

#: The validator's words, and what somebody who writes settings understands.
_PLAIN = {
    "Input should be a valid array": "expected a list",
    "Input should be a valid boolean": "expected True or False",
    "Input should be a valid integer": "expected a whole number",
    "Input should be a valid number": "expected a number",
    "Input should be a valid string": "expected text",
    "Input should be an object": "expected a table",
    "Input should be a valid dictionary": "expected a table",
    "Input should be greater": "expected a number greater",
    "Input should be less": "expected a number less",
    "Input should": "expected a value that should",
    "Input should be": "expected",
    "String should match": "expected text that matches",
    "String should": "expected text that should",
    "Extra inputs are not permitted": "is not known here",
    "Field required": "expected a value; there is none",
}
_WORDING = re.compile("|".join(map(re.escape, sorted(_PLAIN, key=len, reverse=True))))


class Settings:
    """All settings of one application, typed; a `fastlane_core.hookspecs.SettingsSource`."""

    def __init__(
        self,
        values: Mapping[type[BaseModel], BaseModel],
        origins: Mapping[str, str],
        notices: Sequence[str] = (),
    ) -> None:
        """Use `Settings.load`."""
        self._values = values
        self._origins = origins
        #: What the operator should know although nothing is wrong, as sentences.
        self.notices = tuple(notices)

    @classmethod
    def load(
        cls,
        sections: Iterable[SettingsSection],
        *,
        path: Path | None,
        environment: Mapping[str, str],
        overrides: Mapping[str, object] = _NO_OVERRIDES,
    ) -> Settings:
        """Read every source and validate it by the sections' models.

        `path` is a settings file or a directory of `*.conf` files, `environment` all variables of the process, and
        `overrides` what the command line says, by key. Raises SettingsError with everything that is wrong.
        """
        sections = tuple(sections)
        known = keys_by_name(sections)
        bare = frozenset[str]().union(*(section.bare_environment for section in sections))
        given, problems = _gather(path, environment, overrides, bare | (REFUSED_BARE - known.keys()))
        problems += [
            f"{each.source}: {each.key}: {explain_unknown(each.key, known)}" for each in given if each.key not in known
        ]
        strongest = {each.key: each for each in given if each.key in known}
        values: dict[type[BaseModel], BaseModel] = {}
        for section in sections:
            keys = {name: key for name, key in known.items() if key.section is section}
            model, wrong = _validate(section, keys, strongest)
            problems += wrong.values()
            if model is not None:
                values[section.model] = model
        if problems:
            raise SettingsError("the settings cannot be used:\n" + "\n".join(f"  {problem}" for problem in problems))
        return cls(values, {each.key: each.source for each in strongest.values()}, _notices(environment, known))

    def section(self, model: type[Section]) -> Section:
        """The validated values of the section that was declared with this model. Raises SettingsError if none was."""
        values = self._values.get(model)
        if not isinstance(values, model):
            raise SettingsError(f"no plugin in use declares the settings section {model.__name__}")
        return values

    def origin(self, key: str) -> str:
        """Where the value of `key` comes from: `fastlane.conf:3`, `environment variable X`, `default`, ..."""
        return self._origins.get(key, "default")


def read_general(
    *, path: Path | None, environment: Mapping[str, str], overrides: Mapping[str, object] = _NO_OVERRIDES
) -> GeneralSettings:
    """The general settings alone, which say what plugins to load, before these have declared their sections.

    Other keys are passed over, and a general one that is wrong has its default here: `Settings.load` reports both.
    Raises SettingsError for a file that cannot be read.
    """
    (section,) = (each for each in CORE_SECTIONS if each.model is GeneralSettings)
    keys = keys_by_name([section])
    given, problems = _gather(path, environment, overrides, section.bare_environment)
    if problems:
        raise SettingsError("the settings cannot be used:\n" + "\n".join(f"  {problem}" for problem in problems))
    strongest = {each.key: each for each in given if each.key in keys}
    _, wrong = _validate(section, keys, strongest)
    usable = {name: each for name, each in strongest.items() if name not in wrong} if "" not in wrong else {}
    model, _ = _validate(section, keys, usable)
    return model if isinstance(model, GeneralSettings) else GeneralSettings()


def _gather(
    path: Path | None, environment: Mapping[str, str], overrides: Mapping[str, object], bare: Iterable[str]
) -> tuple[list[Given], list[str]]:
    """What all sources set, weakest first, and what is wrong with how they are written."""
    from_file, problems = read_files(path) if path is not None else ((), ())
    given = [*from_file, *read_environment(environment, bare)]
    given += [Given(key, value, "command line") for key, value in overrides.items()]
    return given, list(problems)


def _validate(
    section: SettingsSection, keys: Mapping[str, Key], given: Mapping[str, Given]
) -> tuple[BaseModel | None, dict[str, str]]:
    """The section's values; or None, and a sentence for each key that is wrong (under "" for all together)."""
    wrong: dict[str, str] = {}
    data: dict[str, object] = {}
    for name, key in keys.items():
        if name in given:
            try:
                value = to_jsonable_python(_meant(given[name], key))
                json.dumps(value, ensure_ascii=False).encode()
            except (PydanticSerializationError, UnicodeEncodeError):
                wrong[name] = f"{given[name].source}: {name}: expected text or numbers that JSON can carry"
                continue
            data[key.field_name] = value
    try:
        # As JSON, because only there is strict the right measure: "10" is no number, but a list may become a tuple.
        return section.model.model_validate_json(json.dumps(data), strict=True), wrong
    except ValidationError as error:
        for detail in error.errors(include_url=False, include_context=False):
            name = str(detail["loc"][0]).upper() if detail["loc"] else ""
            problem = _problem(section, detail, given.get(name), keys.get(name), data)
            wrong[name] = f"{wrong[name]}\n  {problem}" if name in wrong else problem
        return None, wrong


def _meant(given: Given, key: Key) -> object:
    if not isinstance(given.value, str):
        return given.value
    if given.is_text:
        return from_text(given.value, key.field.annotation)
    return container(given.value) if admits_only_containers(key.field.annotation) else given.value


def _problem(
    section: SettingsSection, detail: ErrorDetails, given: Given | None, key: Key | None, data: Mapping[str, object]
) -> str:
    if given is None or key is None:
        return f"{section.title}: {redact_url(detail['msg'].removeprefix('Value error, '))}"
    value: object = data[key.field_name]
    place = given.key
    for step in detail["loc"][1:]:
        match value, step:
            case dict(), str() if step in value:
                place, value = f"{place}.{step}", value[step]
            case list(), int() if step < len(value):
                place, value = f"{place}[{step}]", value[step]
            case dict(), str() if detail["type"] == "missing":
                place = f"{place}.{step}"
    hidden = _holds_secret(key) or is_secret(place, _SECRET_WORDS)
    expected, seen = _expected(detail, hidden=hidden), kind_of(value, hidden=hidden)
    if isinstance(value, str) and value.strip()[:1] in ("[", "{") and (why := why_not_json(value)):
        seen = f"{seen} that is {why}"
    if detail["type"] == "string_pattern_mismatch" and key.field.description:
        seen = f"{seen} ({key.field.description})"
    return f"{given.source}: {place}: {expected}; got {seen}"


def _expected(detail: ErrorDetails, *, hidden: bool) -> str:
    if detail["type"] in _OUTSPOKEN:
        if hidden:
            return "the value is not accepted"
        return redact_url(detail["msg"].removeprefix("Value error, "))
    return _WORDING.sub(lambda match: _PLAIN[match[0]], detail["msg"])


def _holds_secret(key: Key) -> bool:
    return isinstance(key.default(), SecretStr | SecretBytes) or "Secret" in str(key.field.annotation)


def _notices(environment: Mapping[str, str], known: Mapping[str, Key]) -> list[str]:
    return [
        f"the environment variable {name} is passed over: {explain_unknown(name, known)}"
        for name in sorted(NOTICED_BARE - known.keys())
        if environment.get(name) and f"{PREFIX}{name}" not in environment
    ]
