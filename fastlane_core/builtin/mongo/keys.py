"""Identifiers of documents, and page cursors."""

from __future__ import annotations

import base64
import binascii
import json
import math

from fastlane_core.errors import InvalidInput

#: "/" is between the parts of a key, and not every server that speaks like MongoDB takes a NUL within a string.
_ESCAPES = str.maketrans({"\\": "\\\\", "/": "\\s", "\x00": "\\0"})
_MEANINGS = {"\\": "\\", "s": "/", "0": "\x00"}


def escape(text: str) -> str:
    """`text` as it may be part of a key; most ids are themselves."""
    return text.translate(_ESCAPES)


def unescape(text: str) -> str:
    """What `escape` was given."""
    if "\\" not in text:
        return text
    characters = iter(text)
    return "".join(_MEANINGS[next(characters)] if each == "\\" else each for each in characters)


def key_of(*parts: str) -> str:
    """A key made of several texts; different ones never have the same."""
    return "/".join(map(escape, parts))


def encode_cursor(*position: float | str) -> str:
    """The cursor behind the document with that position."""
    return base64.urlsafe_b64encode(json.dumps(position).encode()).decode()


def decode_timed_cursor(cursor: str) -> tuple[float, str]:
    """Time and key from `encode_cursor`. Raises InvalidInput."""
    match _position(cursor):
        case [float() as time, str() as key] if math.isfinite(time):
            return time, key
    raise _not_ours()


def decode_text_cursor(cursor: str) -> str:
    """The text from `encode_cursor`. Raises InvalidInput."""
    match _position(cursor):
        case [str() as text]:
            return text
    raise _not_ours()


def _position(cursor: str) -> object:
    try:
        found: object = json.loads(base64.b64decode(cursor.encode("ascii"), altchars=b"-_", validate=True))
        json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, binascii.Error, RecursionError):
        raise _not_ours() from None
    return found


def _not_ours() -> InvalidInput:
    return InvalidInput("cursor", "expected the cursor of an earlier page")
