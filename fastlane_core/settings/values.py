"""Values as they are written: Python and JSON literals, and texts of the environment. Nothing is ever executed."""

from __future__ import annotations

import ast
import json
import math
import types
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, is_dataclass
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin, is_typeddict

from pydantic import BaseModel
from typing_extensions import TypeAliasType

_JSON_NAMES: Mapping[str, bool | None] = {"true": True, "false": False, "null": None}
_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_EXAMPLES = 'a literal: "text", 10, 1.5, True, None, [..], {..}'


@dataclass(frozen=True, slots=True)
class Given:
    """One key as somebody set it."""

    key: str
    value: object
    #: `fastlane.conf:3`, `environment variable DEBUG`, or `command line`.
    source: str
    #: Whether the value is a text of the environment, which the key's type gives its meaning.
    is_text: bool = False


class NotALiteral(Exception):
    """A value that is more, or less, than a literal."""

    def __init__(self, line: int, expected: str) -> None:
        """`line` counts from 1 in the text that was parsed."""
        super().__init__(expected)
        self.line = line


def parse(source: str) -> list[ast.stmt]:
    """The statements of `source`. Raises NotALiteral where it cannot be parsed."""
    try:
        with warnings.catch_warnings():
            # A regular expression's \d in an ordinary string is kept as it is, and is no reason to complain.
            warnings.simplefilter("ignore")
            return ast.parse(source).body
    except SyntaxError as error:
        raise NotALiteral(error.lineno or 1, f"expected KEY = value with {_EXAMPLES} ({error.msg})") from None
    except (ValueError, RecursionError, MemoryError):
        raise NotALiteral(1, f"expected KEY = value with {_EXAMPLES}; this cannot be parsed at all") from None


def literal(node: ast.expr) -> object:
    """The value of a literal; tuples are lists, and JSON's true, false and null are known. Raises NotALiteral."""
    match node:
        case ast.Constant(value=None | bool() | int() as value):
            return value
        case ast.Constant(value=str() as text):
            return _encodable(node, text)
        case ast.Constant(value=float() as number) if math.isfinite(number):
            return number
        case ast.Name(id=name) if name in _JSON_NAMES:
            return _JSON_NAMES[name]
        case ast.Name(id=name):
            raise NotALiteral(node.lineno, f'expected {_EXAMPLES}; found the bare word {name}: quote it ("{name}")')
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=ast.Constant(value=int() | float() as number)) if (
            not isinstance(number, bool) and math.isfinite(number)
        ):
            return -number if isinstance(sign, ast.USub) else number
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [literal(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            return _table(node, keys, values)
        case ast.Call():
            raise NotALiteral(node.lineno, f"expected {_EXAMPLES}; found a call, and settings are never executed")
        case ast.Constant(value=float()):
            raise NotALiteral(node.lineno, "expected a finite number")
    raise NotALiteral(node.lineno, f"expected {_EXAMPLES}; found an expression, and settings are never executed")


def from_text(text: str, annotation: object) -> object:
    """What a text of the environment means for a key of this type; the text itself where it has no such meaning.

    Lists and tables are JSON or a literal; texts are taken as they are; numbers and truth values are read. An empty
    text is None where the type has it.
    """
    kinds = _kinds(annotation)
    word = text.strip().lower()
    if "container" in kinds and isinstance(value := container(text), list | dict):
        return value
    if "none" in kinds and (not word or ("text" not in kinds and word in ("none", "null"))):
        return None
    if "text" in kinds:
        return text
    if "bool" in kinds and word in _BOOLEANS and (word.isalpha() or not kinds & {"int", "float"}):
        return _BOOLEANS[word]
    for kind, read in (("int", int), ("float", float)):
        if kind in kinds:
            try:
                number = read(word)
            except ValueError:
                continue
            return number if math.isfinite(number) else text
    return text


def admits_only_containers(annotation: object) -> bool:
    """Whether a text can only be meant as JSON for this type."""
    return "container" in (kinds := _kinds(annotation)) and "text" not in kinds


def container(text: str) -> object:
    """The list or table that `text` holds as JSON or as a literal; the text itself if it holds none."""
    if text.strip()[:1] not in ("[", "{"):
        return text
    try:
        value: object = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        try:
            match parse(text.strip()):
                case [ast.Expr(value=node)]:
                    return literal(node)
        except NotALiteral:
            pass
        return text
    return value


def why_not_json(text: str) -> str:
    """Where `text` stops being JSON, without quoting it; "" if that is not what is wrong with it."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return f"not JSON at its line {error.lineno}, column {error.colno}: {error.msg.lower()}"
    except RecursionError:
        return "nested too deeply"
    return ""


def kind_of(value: object, *, hidden: bool = False) -> str:
    """What a value is, in words. Numbers and truth values that are not `hidden` are told, texts never."""
    match value:
        case bool() | int() | float() if not hidden and abs(value) < 10**18:
            return repr(value)
        case None:
            return "None"
        case bool():
            return "a truth value"
        case int():
            return "a whole number"
        case float():
            return "a number with a fraction"
        case str():
            return "text" if value else "an empty text"
        case list():
            return "a list"
        case dict():
            return "a table"
    return f"a {type(value).__name__}"


def _table(node: ast.Dict, keys: list[ast.expr | None], values: list[ast.expr]) -> dict[str, object]:
    table: dict[str, object] = {}
    for key, value in zip(keys, values, strict=True):
        if not (isinstance(key, ast.Constant) and isinstance(key.value, str)):
            raise NotALiteral((key or node).lineno, "expected a quoted text as each key of a table")
        if key.value in table:
            raise NotALiteral(key.lineno, "expected each key of a table once; this one is there already")
        table[_encodable(key, key.value)] = literal(value)
    return table


def _encodable(node: ast.expr, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise NotALiteral(node.lineno, "expected text of whole characters; found half of a surrogate pair") from None
    return text


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a key is there twice")
    return table


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


_Kind = Literal["text", "bool", "int", "float", "none", "container"]


def _kinds(annotation: object) -> frozenset[_Kind]:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _kinds(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return frozenset[_Kind]().union(*(_kinds(member) for member in get_args(annotation)))
    if origin is Literal:
        return frozenset[_Kind]().union(*(_kinds(type(member)) for member in get_args(annotation)))
    if isinstance(annotation, TypeAliasType):
        return _kinds(annotation.__value__)
    # A type given by name only refers to itself, as that of JSON does.
    if annotation is Any or annotation is object or isinstance(annotation, str):
        return frozenset({"text", "container"})
    kind = origin if origin is not None else annotation
    return frozenset({_kind_of_class(kind)}) if isinstance(kind, type) else frozenset({"text"})


def _kind_of_class(kind: type) -> _Kind:
    if kind is type(None):
        return "none"
    for scalar, name in _SCALARS:
        if issubclass(kind, scalar):
            return name
    if issubclass(kind, Enum):
        return "text"
    if issubclass(kind, BaseModel | Collection) or is_dataclass(kind) or is_typeddict(kind):
        return "container"
    return "text"


_SCALARS: tuple[tuple[type, _Kind], ...] = (
    (str, "text"),
    (bytes, "text"),
    (bool, "bool"),
    (int, "int"),
    (float, "float"),
)
