"""Which farm takes a task, and which hosts it has: pure, from the settings alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fastlane_core.contracts.runner import Lane
from fastlane_docker.engines.addresses import Address
from fastlane_docker.settings import DockerSettings, FarmSettings, lane_name


@dataclass(frozen=True, kw_only=True, slots=True)
class Host:
    """One engine as a member of one farm."""

    address: Address
    #: Runs at a time that the farm gives it.
    capacity: int
    #: Share of the farm's runs, relative to the other hosts.
    weight: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Farm:
    """One farm: a lane, and the hosts that its runs are spread over."""

    lane: Lane
    pattern: re.Pattern[str]
    hosts: Mapping[str, Host]
    settings: FarmSettings

    @property
    def name(self) -> str:
        """As people know it."""
        return self.lane.name.partition(":")[2]


class Farms:
    """All farms, in the order of the settings."""

    def __init__(self, settings: DockerSettings) -> None:
        self._farms = {
            farm.lane.name: farm for farm in (_farm(*numbered) for numbered in enumerate(settings.docker_hosts))
        }

    def __iter__(self) -> Iterator[Farm]:
        return iter(self._farms.values())

    def of_lane(self, lane: str) -> Farm | None:
        """The farm of a lane; None for a lane that the settings do not have (any more)."""
        return self._farms.get(lane)

    def of_task(self, task_id: str) -> Farm | None:
        """The first farm whose pattern matches the start of the task's id."""
        return next((farm for farm in self._farms.values() if farm.pattern.match(task_id)), None)

    def addresses(self) -> Mapping[str, Address]:
        """Every engine that a farm names, by key."""
        return {key: host.address for farm in self._farms.values() for key, host in farm.hosts.items()}

    def routing_help(self) -> str:
        """Which tasks the farms take."""
        takes = ", ".join(f"{farm.lane.name} takes {farm.pattern.pattern!r}" for farm in self._farms.values())
        return f"Docker farms by the start of the task's id: {takes}."


def _farm(number: int, settings: FarmSettings) -> Farm:
    hosts: dict[str, Host] = {}
    for each, address in zip(settings.hosts, settings.addresses(), strict=True):
        capacity = min(each.maxRunning or settings.maxRunning, settings.maxRunning)
        hosts[address.key] = Host(address=address, capacity=capacity, weight=each.weight)
    return Farm(
        lane=Lane(name=lane_name(number, settings), capacity=settings.maxRunning),
        pattern=re.compile(settings.match),
        hosts=hosts,
        settings=settings,
    )
