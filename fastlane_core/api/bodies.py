"""Request bodies: bounded, and JSON whatever the content type says."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Callable, Iterator
from typing import TypeVar, cast

from quart import Request, request
from quart.wrappers.base import BaseRequestWebsocket
from quart.wrappers.request import Body
from werkzeug.exceptions import RequestEntityTooLarge, RequestTimeout

from fastlane_core.errors import InvalidInput
from fastlane_core.models import Json

#: Bytes of a body that is too large which are read and dropped, so that its sender gets to read the answer.
_DRAINED = 64 * 1024 * 1024
#: Larger bodies are parsed in a thread: a megabyte of JSON takes long enough for others to notice.
_PARSED_IN_PLACE = 64 * 1024
_DEEPEST = 64
_UNUSABLE = re.compile("[\0\ud800-\udfff]")

Parsed = TypeVar("Parsed")


class BoundedBody(Body):
    """A body of which never more than the limit is in memory.

    One that is too large is read to its end before it is refused: a server that closes a connection with unread data
    in it makes most clients lose the answer.
    """

    def __init__(self, expected_content_length: int | None, max_content_length: int | None) -> None:
        super().__init__(None, None)
        self._limit = max_content_length
        self._received = 0
        #: Whether its end has come.
        self.is_whole = False

    @property
    def is_complete(self) -> bool:
        """Whether no more of it is taken."""
        return self._complete.is_set()

    def append(self, data: bytes) -> None:
        self._received += len(data)
        if self._limit is None or self._received <= self._limit:
            super().append(data)
            return
        self._data.clear()
        if self._received > self._limit + _DRAINED:
            self.set_complete()

    def set_complete(self) -> None:
        if self._limit is not None and self._received > self._limit:
            self._must_raise = RequestEntityTooLarge(f"The body is larger than the {self._limit} bytes allowed.")
        super().set_complete()

    def give_up(self) -> None:
        """It takes too long: whoever asks for it gets RequestTimeout."""
        self._must_raise = RequestTimeout()
        super().set_complete()


class BoundedRequest(Request):
    """A request with a bounded body."""

    body_class = BoundedBody

    @property
    def blueprints(self) -> list[str]:
        """As Quart finds them, which imports a module each of the four times that it asks: the inner one first."""
        names: list[str] = []
        name = self.blueprint
        while name:
            names.append(name)
            name = name.rpartition(".")[0]
        return names


def header(asked: BaseRequestWebsocket, name: bytes) -> str | None:
    """The header of that name, which is in lower case, or None.

    `headers.get` raises and catches an exception for each one that is missing, and most are.
    """
    for key, value in asked.scope["headers"]:
        if key == name:
            return value.decode("latin1")
    return None


async def parsed_body(parse: Callable[[bytes], Parsed]) -> tuple[Parsed, bytes]:
    """What `parse` makes of the current request's body, and the body.

    Raises RequestEntityTooLarge, RequestTimeout, and what `parse` raises.
    """
    # It has come already, so it needs no waiting with a time-out of its own.
    body = await request.body
    if len(body) > _PARSED_IN_PLACE:
        return await asyncio.to_thread(parse, body), body
    return parse(body), body


def parse_json_object(body: bytes) -> dict[str, Json]:
    """The JSON object in `body`. Raises InvalidInput as `parse_json` does, and for what is no object."""
    document = parse_json(body)
    if not isinstance(document, dict):
        raise InvalidInput("", f"the body is {kind_of(document)}: expected a JSON object")
    return document


def parse_json(body: bytes) -> Json:
    """The JSON value (RFC 8259) in `body`.

    Raises InvalidInput also for what JSON cannot carry onward safely: NUL characters, lone surrogates, numbers beyond
    what a double holds, and nesting deeper than 64.
    """
    if not body.strip():
        raise InvalidInput("", "the body is empty: expected a JSON object")
    try:
        document = _DECODER.decode(body.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InvalidInput("", f"the body is not UTF-8 text: byte {error.start} cannot be decoded") from None
    except json.JSONDecodeError as error:
        raise InvalidInput(
            "", f"the body is not JSON: {error.msg} (line {error.lineno}, column {error.colno})"
        ) from None
    except RecursionError:
        raise InvalidInput("", f"the body is nested deeper than {_DEEPEST} levels") from None
    except ValueError as error:
        raise InvalidInput("", f"the body is not JSON: {error}") from None
    # A text, a number or the like alone is of no use to anybody who asks.
    if isinstance(document, dict | list):
        # What must not be in texts comes into one by an escape alone: neither is valid in UTF-8 or in JSON as it is.
        _check_contents(document, texts=b"\\u" in body)
    return cast("Json", document)


def kind_of(value: object) -> str:
    """What a parsed JSON value is, in words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "an object" if isinstance(value, dict) else "a list"


def _check_contents(document: object, *, texts: bool) -> None:
    """Look through all of it, `texts` as well, holding no more than one iterator per level."""
    levels: list[tuple[tuple[str, ...], Iterator[tuple[object, object]]]] = [((), _items(document))]
    while levels:
        path, rest = levels[-1]
        for key, value in rest:
            if texts and isinstance(key, str) and (problem := _problem(key)):
                raise InvalidInput(_dotted(path), f"has a key with {problem}")
            if texts and isinstance(value, str) and (problem := _problem(value)):
                raise InvalidInput(_dotted((*path, str(key))), f"contains {problem}")
            if isinstance(value, dict | list):
                if len(levels) == _DEEPEST:
                    raise InvalidInput(_dotted(path[:3]), f"nested deeper than {_DEEPEST} levels")
                levels.append(((*path, str(key)), _items(value)))
                break
        else:
            levels.pop()


def _items(value: object) -> Iterator[tuple[object, object]]:
    return iter(value.items()) if isinstance(value, dict) else iter(enumerate(cast("list[object]", value)))


def _problem(text: str) -> str | None:
    found = _UNUSABLE.search(text)
    if found is None:
        return None
    return "a NUL character" if found[0] == "\0" else "half a surrogate pair, which is no character"


def _dotted(path: tuple[str, ...]) -> str:
    return ".".join(part if part.isprintable() and len(part) <= 100 else f"{part[:20]!a}…" for part in path)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"the number {text[:40]} is too large")
    return number


_DECODER = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite)
