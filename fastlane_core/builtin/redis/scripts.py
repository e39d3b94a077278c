"""The Lua scripts: each is one atomic step over keys of one slot."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class Script:
    """One step, as the server runs it."""

    name: str
    source: str
    #: What EVALSHA calls it.
    sha: str


@cache
def script(name: str) -> Script:
    """The script of that name; steps of a lane get what they share put in front."""
    folder = files(__package__) / "scripts"
    source = (folder / f"{name}.lua").read_text("utf-8")
    if not name.startswith(("index_", "marker_", "registry_")):
        source = (folder / "lane.lua").read_text("utf-8") + source
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())
