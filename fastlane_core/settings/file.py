"""The settings file: `KEY = value` lines, comments, nothing else; read without executing anything."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path

from fastlane_core.errors import SettingsError
from fastlane_core.settings.values import Given, NotALiteral, literal, parse

#: Bytes of one file; settings are far from that.
_LARGEST = 1024 * 1024

_FORBIDDEN = {
    ast.Import: "an import",
    ast.ImportFrom: "an import",
    ast.FunctionDef: "a function",
    ast.ClassDef: "a class",
    ast.AugAssign: "an assignment that adds",
    ast.AnnAssign: "a colon after the key",
    ast.If: "a condition",
    ast.For: "a loop",
    ast.Expr: "a value without a key",
}


def read_files(path: Path) -> tuple[Sequence[Given], Sequence[str]]:
    """The keys set by the file at `path`, or by the `*.conf` files of that directory; and what is wrong in them.

    The files of a directory are read in the order of their names: a later one wins over an earlier one. Raises
    SettingsError when there is nothing to read.
    """
    given: list[Given] = []
    problems: list[str] = []
    for file in _files(path):
        each_given, each_problems = _read(file)
        given += each_given
        problems += each_problems
    return given, problems


def _files(path: Path) -> Sequence[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(path.glob("*.conf"))
    if not files:
        raise SettingsError(f"the settings directory {path} has no file that ends in .conf")
    return files


def _read(file: Path) -> tuple[Sequence[Given], Sequence[str]]:
    try:
        statements = parse(_text(file))
    except NotALiteral as error:
        return [], [f"{file}:{error.line}: {error}"]
    given: dict[str, Given] = {}
    problems: list[str] = []
    for statement in statements:
        try:
            each = _assignment(file, statement)
        except NotALiteral as error:
            problems.append(f"{file}:{error.line}: {error}")
            continue
        if each.key in given:
            problems.append(f"{each.source}: {each.key}: expected each key once; it is set at {given[each.key].source}")
        given.setdefault(each.key, each)
    return list(given.values()), problems


def _assignment(file: Path, statement: ast.stmt) -> Given:
    match statement:
        case ast.Assign(targets=[ast.Name(id=key)], value=value):
            try:
                return Given(key, literal(value), f"{file}:{statement.lineno}")
            except NotALiteral as error:
                raise NotALiteral(error.line, f"{key}: {error}") from None
    found = next((words for kind, words in _FORBIDDEN.items() if isinstance(statement, kind)), "something else")
    raise NotALiteral(statement.lineno, f"expected KEY = value; found {found}, and settings are never executed")


def _text(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            data = opened.read(_LARGEST + 1)
    except FileNotFoundError:
        raise SettingsError(f"the settings file {file} does not exist") from None
    except OSError as error:
        raise SettingsError(f"the settings file {file} cannot be read: {error.strerror or error}") from None
    if len(data) > _LARGEST:
        raise SettingsError(f"the settings file {file} is larger than {_LARGEST} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SettingsError(f"the settings file {file} is not UTF-8 text (line {line})") from None
