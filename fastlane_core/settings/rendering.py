"""Sections as the text of a settings file: `fastlane config`."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable

from pydantic import BaseModel, SecretStr
from pydantic_core import to_jsonable_python

from fastlane_core.hookspecs import SettingsSection
from fastlane_core.settings.sections import Key, keys_of

_WIDTH = 100
_RULE = "#" * 80


def render(sections: Iterable[SettingsSection]) -> str:
    """Every key with its description and default, commented out: loads back as if it were not there.

    Removing the first `#` of any setting's lines, or of all lines, gives a file that loads as well.
    """
    blocks = ["## Settings of Fastlane: remove the first # of a line to set a key.\n"]
    for section in sections:
        blocks.append(f"{_RULE}\n## {section.title}\n{_RULE}\n")
        blocks += [_key(key) for key in keys_of(section)]
    return "\n".join(blocks)


def literal_of(value: object, *, indent: str = "") -> str:
    """JSON-like `value` as a Python literal; lists and tables with anything in them over several lines."""
    deeper = indent + "    "
    match value:
        case None | bool() | int() | float():
            return repr(value)
        case [_, *_]:
            items = [f"{deeper}{literal_of(item, indent=deeper)},\n" for item in value]
            return f"[\n{''.join(items)}{indent}]"
        case {} if value:
            pairs = [f"{deeper}{_text(str(key))}: {literal_of(each, indent=deeper)},\n" for key, each in value.items()]
            return f"{{\n{''.join(pairs)}{indent}}}"
        case []:
            return "[]"
        case {}:
            return "{}"
    return _text(str(value))


def _key(key: Key) -> str:
    default = key.default()
    value = default.get_secret_value() if isinstance(default, SecretStr) else _plain(default)
    literal = literal_of(value)
    description = textwrap.wrap(
        " ".join((key.field.description or "").split()), _WIDTH - 3, break_long_words=False, break_on_hyphens=False
    )
    lines = [f"## {line}" for line in description]
    lines.append(f"## Defaults to: {_on_one_line(value)}")
    lines += [f"#{line}" for line in f"{key.name} = {literal}".split("\n")]
    return "\n".join(lines) + "\n"


def _plain(value: object) -> object:
    """As JSON has it; of models within, what was said."""
    match value:
        case BaseModel():
            return value.model_dump(mode="json", exclude_unset=True)
        case list() | tuple():
            return [_plain(each) for each in value]
        case dict():
            return {key: _plain(each) for key, each in value.items()}
    return to_jsonable_python(value)


def _on_one_line(value: object) -> str:
    match value:
        case list():
            return f"[{', '.join(map(_on_one_line, value))}]"
        case dict():
            return f"{{{', '.join(f'{_text(str(key))}: {_on_one_line(each)}' for key, each in value.items())}}}"
    return literal_of(value)


def _text(text: str) -> str:
    # JSON's escapes of control characters mean the same in Python; what it would escape beyond those does not.
    return json.dumps(text, ensure_ascii=False)
