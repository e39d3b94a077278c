"""REDIS_URL in all its forms. What is wrong is said without the value: it may hold a password."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final
from urllib.parse import parse_qsl, unquote

FORMS: Final = (
    "redis://[user:password@]host[:port][/db], rediss:// for TLS, unix://[user:password@]/path[?db=0], "
    "redis+sentinel://[user:password@]host:port,host:port[/db]?master=name, redis+cluster://[user:password@]host:port,..."
    " (rediss+sentinel://, rediss+cluster:// for TLS)"
)
_URL = re.compile(r"(?P<scheme>[a-z+]+)://(?P<rest>[^?#]*)(\?(?P<query>[^#]*))?")
_HOST = re.compile(r"(\[(?P<six>[0-9A-Fa-f:.%]+)\]|(?P<host>[^:\[\]\s]+))(:(?P<port>[0-9]{1,5}))?")


class Topology(StrEnum):
    """How the servers stand to each other."""

    SINGLE = "single"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


@dataclass(frozen=True, kw_only=True, slots=True)
class RedisAddress:
    """Where Redis is, and as whom to go there."""

    topology: Topology
    #: The server, the sentinels, or some nodes of the cluster; empty with a `path`.
    hosts: tuple[tuple[str, int], ...] = ()
    #: Of a Unix socket.
    path: str | None = None
    tls: bool = False
    database: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    #: What the sentinels call the master; "" elsewhere.
    master: str = ""

    @property
    def place(self) -> str:
        """For people, without secrets."""
        if self.path is not None:
            return self.path
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)
        return f"the master {self.master} of the sentinels {hosts}" if self.master else hosts


#: Schemes, with what they mean and the port that goes without saying.
_SCHEMES: Mapping[str, tuple[Topology, bool, int]] = {
    "redis": (Topology.SINGLE, False, 6379),
    "rediss": (Topology.SINGLE, True, 6379),
    "unix": (Topology.SINGLE, False, 0),
    "redis+sentinel": (Topology.SENTINEL, False, 26379),
    "rediss+sentinel": (Topology.SENTINEL, True, 26379),
    "redis+cluster": (Topology.CLUSTER, False, 6379),
    "rediss+cluster": (Topology.CLUSTER, True, 6379),
}


def parse_redis_url(url: str) -> RedisAddress:
    """Raises ValueError with a sentence that does not quote the URL."""
    match = _URL.fullmatch(url)
    if match is None or match["scheme"] not in _SCHEMES:
        raise ValueError(f"expected one of {FORMS}; characters like / ? # @ in a password are written as %2F and so on")
    scheme = match["scheme"]
    topology, tls, default_port = _SCHEMES[scheme]
    credentials, at, place = match["rest"].rpartition("@")
    username, password = _credentials(credentials) if at else (None, None)
    query = _query(match["query"] or "", _PARAMETERS.get(scheme, frozenset()))
    if scheme == "unix":
        if not place.startswith("/") or len(place) < 2:
            raise ValueError("a unix:// URL names the path of a socket: unix:///var/run/redis/redis.sock")
        return RedisAddress(
            topology=topology,
            path=unquote(place),
            database=_database(query.get("db", "")),
            username=username,
            password=password,
        )
    names, _, database = place.partition("/")
    hosts = tuple(_host(name, default_port) for name in names.split(","))
    if topology is Topology.SINGLE and len(hosts) > 1:
        raise ValueError("several hosts are for redis+sentinel:// and redis+cluster://; redis:// takes one")
    if topology is Topology.CLUSTER and _database(database) != 0:
        raise ValueError("a cluster has database 0 alone")
    if topology is Topology.SENTINEL and not query.get("master"):
        raise ValueError("redis+sentinel:// says how the sentinels call the master: ?master=mymaster")
    return RedisAddress(
        topology=topology,
        hosts=hosts,
        tls=tls,
        database=_database(database),
        username=username,
        password=password,
        master=query.get("master", ""),
    )


_PARAMETERS: Mapping[str, frozenset[str]] = {
    "unix": frozenset({"db"}),
    "redis+sentinel": frozenset({"master"}),
    "rediss+sentinel": frozenset({"master"}),
}


def _credentials(text: str) -> tuple[str | None, str | None]:
    username, colon, password = text.partition(":")
    if not colon or not password:
        raise ValueError("what stands before the @ is user:password, or :password for the default user")
    return unquote(username) or None, unquote(password)


def _query(text: str, known: frozenset[str]) -> Mapping[str, str]:
    query = dict(parse_qsl(text, keep_blank_values=True))
    if query.keys() - known:
        expected = f"only {', '.join(sorted(known))}" if known else "none"
        raise ValueError(
            f"there are parameters after the ? that are not known here; expected {expected}. TLS files and the "
            "password of the sentinels have settings of their own"
        )
    return query


def _host(text: str, default_port: int) -> tuple[str, int]:
    match = _HOST.fullmatch(text)
    if match is None:
        raise ValueError("each host is name, name:port or [IPv6]:port, with commas between them")
    port = int(match["port"] or default_port)
    if not 0 < port < 65536:
        raise ValueError("a port is a number from 1 to 65535")
    return match["six"] or match["host"], port


def _database(text: str) -> int:
    if not text:
        return 0
    if not re.fullmatch(r"[0-9]{1,6}", text):
        raise ValueError("the database is a number, 0 if none is given")
    return int(text)
