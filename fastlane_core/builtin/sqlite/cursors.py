"""Page cursors: where a list goes on, as text that callers do not look into."""

from __future__ import annotations

import struct

from fastlane_core.errors import InvalidInput

_POSITION = struct.Struct(">dq")


def encode_cursor(time: float, number: int) -> str:
    """The cursor behind the row with that time and number."""
    return _POSITION.pack(time, number).hex()


def decode_cursor(cursor: str) -> tuple[float, int]:
    """Time and number from `encode_cursor`. Raises InvalidInput."""
    try:
        time, number = _POSITION.unpack(bytes.fromhex(cursor))
    except (ValueError, struct.error):
        raise InvalidInput("cursor", "expected the cursor of an earlier page") from None
    return time, number
