"""What options and farms are written in: sizes, durations, paths and names, as Docker takes them."""

from __future__ import annotations

import ipaddress
import re
import signal
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from fastlane_core.durations import parse_duration

_SIZE_UNITS = {"": 1, "b": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}
_REAL_TIME_SIGNAL = re.compile(r"SIGRT(MIN\+|MAX-)([0-9]|[12][0-9]|30)")
_LAST_SIGNAL = 64


def size_of(value: object) -> object:
    """The bytes that a size such as `512m` stands for; ValueError for other text. What is no text stays as it is."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?) ?([bkmgt]?)(?:(?<=[kmgt])i?b)?", value.strip().lower())
    if found is None:
        raise ValueError(f"{value[:100]!r}: expected a number of bytes, or one with k, m or g, such as 512m")
    return int(float(found[1]) * _SIZE_UNITS[found[2]])


def seconds_of(value: object) -> object:
    """The seconds that a duration such as `1m30s` stands for; ValueError for other text."""
    if not isinstance(value, str):
        return value
    return parse_duration(value)


def path_of(value: str) -> str:
    """An absolute path in its normal form; ValueError for anything that could mean another place than it says."""
    parts = value.split("/")
    if not value.startswith("/") or not value.isprintable() or any(part in (".", "..") for part in parts):
        raise ValueError(f"{value[:200]!r}: expected an absolute path without '.' and '..'")
    return "/" + "/".join(part for part in parts if part)


def signal_of(value: object) -> object:
    """A signal as Docker takes it: `SIGINT` for `INT`, `int` and `SIGINT`, `10` for 10; ValueError for others."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        return value
    name = value.strip().upper()
    if name.isdecimal() and 0 < int(name) <= _LAST_SIGNAL:
        return name
    name = name if name.startswith("SIG") else f"SIG{name}"
    if name not in signal.Signals.__members__ and _REAL_TIME_SIGNAL.fullmatch(name) is None:
        raise ValueError(f"{value[:100]!r}: expected a signal such as SIGTERM or SIGINT, or its number")
    return name


def capability_of(value: object) -> object:
    """A Linux capability as Docker takes it: upper case, without `CAP_`."""
    return value.strip().upper().removeprefix("CAP_") if isinstance(value, str) else value


def listed(value: object) -> object:
    """A list; one text is a list of itself."""
    return [value] if isinstance(value, str) else value


def _ip_address(value: str) -> str:
    if value != "host-gateway":
        try:
            ipaddress.ip_address(value)
        except ValueError:
            raise ValueError(f"{value[:100]!r}: expected an IP address, or host-gateway") from None
    return value


def _network(value: str) -> str:
    if value.startswith("container:"):
        raise ValueError("expected the name of a network; that of another container is not to be had")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}", value):
        raise ValueError(f"{value[:100]!r}: expected the name of a network: letters, digits, _ . and -")
    return value


def _label(name: str) -> str:
    if not name.strip() or not name.isprintable():
        raise ValueError("expected a name for the label")
    if name.lower().startswith("fastlane."):
        raise ValueError("labels that begin with fastlane. are Fastlane's own")
    return name


def _absolute(value: str) -> str:
    if path_of(value) == "/":
        raise ValueError("expected a path below /")
    return path_of(value)


_AS_SIZE = BeforeValidator(size_of, json_schema_input_type=int | str)
_MOST = 2**63
#: Docker's least memory.
_SMALLEST_MEMORY = 6 * 1024**2

#: Bytes, as a number or as text such as `512m`.
Size = Annotated[int, Field(ge=1, lt=_MOST), _AS_SIZE]
MemorySize = Annotated[int, Field(ge=_SMALLEST_MEMORY, lt=_MOST), _AS_SIZE]
#: Seconds up to an hour, as a number or as text such as `1m30s`.
Grace = Annotated[float, Field(ge=0, le=3600), BeforeValidator(seconds_of, json_schema_input_type=float | str)]
Path = Annotated[str, Field(max_length=4096), AfterValidator(path_of)]
PathBelowRoot = Annotated[str, Field(max_length=4096), AfterValidator(_absolute)]
Signal = Annotated[str, BeforeValidator(signal_of, json_schema_input_type=int | str)]
Capability = Annotated[
    str, BeforeValidator(capability_of), Field(pattern=r"^[A-Z][A-Z_]{1,40}$", description="Such as NET_RAW, or ALL.")
]
HostName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})$")]
IpAddress = Annotated[str, AfterValidator(_ip_address)]
NetworkName = Annotated[str, AfterValidator(_network)]
LabelName = Annotated[str, Field(max_length=1024), AfterValidator(_label)]
LabelText = Annotated[str, Field(max_length=16 * 1024)]
