"""Where engines are: every form in which a host may be written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

_DEFAULT_PORT = 2375
#: What a name or an IP address of either version is made of.
_NAME = re.compile(r"[a-z0-9_.-]+|[0-9a-f:.]+")


@dataclass(frozen=True, slots=True)
class Address:
    """One engine."""

    #: Names the engine in records and settings: `host:port`, or `unix:///path`.
    key: str
    #: As the Docker SDK wants it.
    url: str
    #: As `/status` shows it; a socket has no port.
    host: str
    port: int | None


def parse_address(text: str) -> Address:
    """The engine that `name`, `name:port`, `tcp://name:port` or `unix:///path` names.

    Raises ValueError with what was expected.
    """
    text = text.strip()
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "tcp", text
    if scheme == "unix":
        if not rest.startswith("/"):
            raise ValueError(f"{text!r}: expected unix:// and an absolute path, such as unix:///var/run/docker.sock")
        return Address(key=f"unix://{rest}", url=f"unix://{rest}", host=f"unix://{rest}", port=None)
    if scheme != "tcp":
        raise ValueError(f"{text!r}: expected name, name:port, tcp://name:port or unix:///path")
    try:
        parts = urlsplit(f"tcp://{rest}")
        name, port = parts.hostname, parts.port or _DEFAULT_PORT
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}; expected name:port with a port from 1 to 65535") from error
    if not name or not _NAME.fullmatch(name) or parts.path.strip("/") or parts.query or parts.username:
        raise ValueError(f"{text!r}: expected name, name:port, tcp://name:port or unix:///path")
    shown = f"[{name}]" if ":" in name else name
    return Address(key=f"{shown}:{port}", url=f"tcp://{shown}:{port}", host=name, port=port)
