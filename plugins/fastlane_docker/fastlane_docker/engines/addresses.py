"""Where engines are: every form in which a host may be written."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

_PORT = 2375
_TLS_PORT = 2376
_FORMS = "expected name, name:port, tcp://name:port, https://name:port or unix:///path"
_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(:(?P<port>[0-9]{1,5}))?/?")
#: Labels of a DNS name, or the numbers of an IPv4 address.
_NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*")


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The PEM files that TLS with an engine takes, by path. Without `ca` the system's authorities are trusted."""

    ca: str | None = None
    cert: str | None = None
    key: str | None = None


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
    #: None where it is spoken to without TLS.
    tls: TlsFiles | None = None


def parse_address(text: str, tls: TlsFiles | None = None) -> Address:
    """The engine that `name`, `name:port`, `tcp://`, `https://` or `unix:///path` names; an IPv6 address is
    written `[::1]`.

    It is spoken to by TLS if `tls` is given or the text begins with https://, but never over a Unix socket.
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
    if scheme not in ("tcp", "https"):
        raise ValueError(f"{text!r}: {_FORMS}")
    if scheme == "https":
        tls = tls or TlsFiles()
    parts = _HOST.fullmatch(rest.lower())
    name = _name(parts["name"]) if parts else ""
    if parts is None or not name:
        raise ValueError(f"{text!r}: {_FORMS}")
    port = int(parts["port"] or (_TLS_PORT if tls else _PORT))
    if not 0 < port < 65536:
        raise ValueError(f"{text!r}: expected a port from 1 to 65535")
    shown = f"[{name}]" if ":" in name else name
    url = f"{'https' if tls else 'tcp'}://{shown}:{port}"
    return Address(key=f"{shown}:{port}", url=url, host=name, port=port, tls=tls)


def _name(text: str) -> str:
    """A name or an IP address as it is written everywhere; "" if it is neither."""
    if text.startswith("["):
        try:
            return ipaddress.IPv6Address(text[1:-1]).compressed
        except ValueError:
            return ""
    return text if _NAME.fullmatch(text) and len(text) <= 253 else ""
