"""Blacklisting and draining hosts over HTTP: `/docker-executor/blacklist`, as clients of the first Fastlane know it.

POST, PUT    {"host": "docker1:2375"}                                      gets nothing new; its runs go on
             {"host": "docker1", "deadline": "10m", "then": "stop"}        besides, be empty in ten minutes
DELETE, DEL  {"host": "docker1"}                                           takes runs again
GET                                                                        what is blacklisted
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from quart import Blueprint, Response, jsonify, request

from fastlane_core.durations import parse_duration
from fastlane_core.errors import InvalidInput
from fastlane_core.hookspecs import RunnerContext
from fastlane_docker.engines.addresses import Address, parse_address
from fastlane_docker.farm.cordons import Cordon, Then, cordons, lift_cordon, put_cordon
from fastlane_docker.farm.farms import Farms
from fastlane_docker.settings import DockerSettings

_PATH = "/docker-executor/blacklist/"
#: Seconds to the furthest deadline.
_LONGEST = 30 * 86_400.0


class _Lifted(BaseModel):
    """Which host."""

    model_config = ConfigDict(extra="forbid")

    host: str = Field(min_length=1, max_length=1000)


class _Cordoned(_Lifted):
    """Which host, and whether it is to be emptied."""

    deadline: float | None = Field(default=None, ge=0, le=_LONGEST)
    then: Then | None = None

    @field_validator("deadline", mode="before")
    @classmethod
    def _as_seconds(cls, value: object) -> object:
        return parse_duration(value) if isinstance(value, str) else value


Body = TypeVar("Body", bound=_Lifted)


def blacklist_blueprint(context: RunnerContext) -> Blueprint:
    """The routes, for the hosts of all farms."""
    blueprint = Blueprint("docker_executor", __name__)
    addresses = Farms(context.settings.section(DockerSettings)).addresses()

    @blueprint.route(_PATH, methods=["POST", "PUT"])
    async def blacklist_host() -> Response:
        """Keep new runs away from a host, or drain it."""
        asked = _parsed(_Cordoned, await request.get_data())
        host = _known_host(asked.host, addresses)
        if asked.then is Then.STOP and asked.deadline is None:
            raise InvalidInput("deadline", 'is missing: expected when runs are stopped, such as "10m", or "0s" for now')
        now = context.clock()
        cordon = Cordon(
            since=now,
            drains=asked.then is not None or asked.deadline is not None,
            deadline=None if asked.deadline is None else now + asked.deadline,
            then=asked.then or Then.WAIT,
        )
        await put_cordon(context.storage, host, cordon)
        return Response("", 200)

    @blueprint.route(_PATH, methods=["DELETE", "DEL"])
    async def unblacklist_host() -> Response:
        """Let a host take runs again."""
        asked = _parsed(_Lifted, await request.get_data())
        await lift_cordon(context.storage, _known_host(asked.host, addresses))
        return Response("", 200)

    @blueprint.get(_PATH)
    async def get_blacklist() -> Response:
        """The hosts that get nothing new."""
        found = await cordons(context.storage)
        return jsonify({"hosts": [{"host": host, **found[host].shape()} for host in sorted(found)]})

    return blueprint


def _parsed(model: type[Body], body: str | bytes) -> Body:
    try:
        return model.model_validate_json(body or b"null")
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        expected = _EXPECTED.get(field, _EXPECTED[""])
        raise InvalidInput(field, f"expected {expected}") from None


_EXPECTED = {
    "": 'a JSON object such as {"host": "docker1:2375"}; to drain also "deadline": "10m" and "then": "stop" or "wait"',
    "host": "a host that a farm names",
    "deadline": f"a length of time such as 10m, or seconds, up to {_LONGEST / 86_400:g} days",
    "then": '"stop" or "wait"',
}


def _known_host(text: str, addresses: Mapping[str, Address]) -> str:
    """The key of the one host that `text` names, with or without its port. Raises InvalidInput, which lists them."""
    matches: list[Callable[[str, Address], bool]] = [
        lambda key, address: text.strip() in (key, address.url),
        lambda key, address: _key_of(text) == key,
        lambda key, address: text.strip().lower().rpartition("://")[2].strip("[]/") == address.host,
    ]
    for is_it in matches:
        found = [key for key, address in addresses.items() if is_it(key, address)]
        if len(found) == 1:
            return found[0]
        if found:
            raise InvalidInput("host", f"{text!r} may be {' or '.join(found)}: expected one of them")
    raise InvalidInput("host", f"no farm has a host {text[:200]!r}; the hosts are {', '.join(addresses)}")


def _key_of(text: str) -> str | None:
    try:
        return parse_address(text).key
    except ValueError:
        return None
