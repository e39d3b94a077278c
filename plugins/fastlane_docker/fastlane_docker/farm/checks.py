"""What `fastlane doctor` is told of the engines of all farms."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from docker.errors import APIError

from fastlane_core.errors import EngineUnavailable
from fastlane_core.hookspecs import CheckContext, Finding, Level
from fastlane_docker.engines.addresses import Address
from fastlane_docker.engines.client import Client
from fastlane_docker.engines.engine import Engine, explanation
from fastlane_docker.farm.farms import Farms
from fastlane_docker.settings import DockerSettings

#: Engines asked at a time, and seconds that one has.
_AT_ONCE = 32
_SECONDS = 10.0
#: Seconds that an engine's clock may be wrong by: it tells when runs began and ended.
_SKEW = 2.0


async def check_hosts(context: CheckContext) -> Sequence[Finding]:
    """One finding per engine, and one more for a clock that is wrong."""
    settings = context.settings.section(DockerSettings)
    asking = asyncio.Semaphore(_AT_ONCE)

    async def check(address: Address) -> Sequence[Finding]:
        engine = Engine(address, min(_SECONDS, settings.docker_timeout_seconds), lambda kind, why: None)
        subject = f"Docker host {address.key}"
        try:
            async with asking:
                before = context.clock()
                about = await engine.call("info", _about)
                return _judge(subject, about, before, context.clock())
        except EngineUnavailable as error:
            advice = "See whether the engine runs, and whether DOCKER_HOSTS and the network lead to it."
            return [Finding(level=Level.PROBLEM, subject=subject, message=str(error), advice=advice)]
        except APIError as error:
            advice = "The engine's own log tells more."
            return [Finding(level=Level.PROBLEM, subject=subject, message=explanation(error), advice=advice)]
        finally:
            engine.close()

    found = await asyncio.gather(*(check(address) for address in Farms(settings).addresses().values()))
    return [each for some in found for each in some]


def _about(client: Client) -> Mapping[str, Any]:
    about: Mapping[str, Any] = client.info()
    return about


def _judge(subject: str, about: Mapping[str, Any], before: float, after: float) -> Sequence[Finding]:
    message = f"answers: Docker {about.get('ServerVersion', '(unknown)')}, {about.get('ContainersRunning', 0)} running"
    found = [Finding(level=Level.OK, subject=subject, message=message)]
    try:
        theirs = datetime.fromisoformat(str(about.get("SystemTime"))).timestamp()
    except ValueError:
        return found
    skew = max(before - theirs, theirs - after)
    if skew > _SKEW:
        how = "behind" if theirs < before else "ahead of"
        wrong = f"its clock is {skew:.0f} s {how} this machine's"
        advice = "Have both machines set their clocks by NTP: times of executions come from the engine."
        found.append(Finding(level=Level.WARNING, subject=subject, message=wrong, advice=advice))
    return found
