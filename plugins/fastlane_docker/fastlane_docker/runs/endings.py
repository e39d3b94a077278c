"""Who ended a run that was killed: somebody on purpose, a drain, or an engine that went down and took it along."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from docker.errors import APIError

from fastlane_core.models import Reason, RunOutcome
from fastlane_docker.engines.client import Client
from fastlane_docker.engines.engine import Engine
from fastlane_docker.farm.cordons import Cordon
from fastlane_docker.runs.containers import parse_time

#: Exit codes that an engine's `stop` gives: killed by SIGTERM, or by SIGKILL after the grace.
_STOPPED = (143, 137)
#: What an engine notes of a run that ended while it was dead, where nothing tells how.
_UNKNOWN = 255
#: Seconds in which an engine that ends its containers because it is asked to end itself is gone.
_LAST_BREATH = 2.0


async def true_outcome(
    engine: Engine, outcome: RunOutcome, *, in_sight: bool, drain: Cordon | None, drained: bool
) -> RunOutcome:
    """The outcome of a run that nobody had asked to end, or what stands behind it where it was killed.

    `in_sight` tells that this worker started it and has had the engine in reach ever since.
    `drain` is the one by which runs on the host are stopped, if any; `drained` tells that this worker did so to this
    run. Raises EngineUnavailable for an engine that went down meanwhile: ask again when it is back.
    """
    if drained or (drain is not None and outcome.exit_code in _STOPPED and _is_after(outcome, drain)):
        if outcome.exit_code != 0 and outcome.reason is not Reason.OUT_OF_MEMORY:
            message = f"Stopped because its host {engine.address.key} is drained."
            return replace(outcome, reason=Reason.DRAINED, message=message)
        return outcome
    killed = outcome.exit_code in _STOPPED and outcome.reason is not Reason.OUT_OF_MEMORY
    if in_sight and not killed:
        return outcome
    before = await _ended_before_the_engine_began(engine, outcome)
    if killed and not before:
        await asyncio.sleep(_LAST_BREATH)
        before = await _ended_before_the_engine_began(engine, outcome)
    if not before:
        return outcome
    if killed or outcome.exit_code == _UNKNOWN:
        message = f"The Docker engine {engine.address.key} went down while it ran, and ended it."
        return replace(outcome, reason=Reason.ENGINE_LOST, message=message)
    # Engines keep what a run writes only while they live.
    told = f"The Docker engine {engine.address.key} was down when it ended: the end of its output may be missing."
    return replace(outcome, message=f"{outcome.message} {told}".strip())


def _is_after(outcome: RunOutcome, drain: Cordon) -> bool:
    """Whether the run ended once the deadline had passed: a worker that died since had it stopped."""
    return drain.deadline is not None and outcome.finished_at is not None and outcome.finished_at >= drain.deadline


async def _ended_before_the_engine_began(engine: Engine, outcome: RunOutcome) -> bool:
    """Whether the run's end is older than the engine's present life, both by the engine's clock."""
    began = await engine.call("when it began", began_at)
    return began is not None and outcome.finished_at is not None and outcome.finished_at <= began


def began_at(client: Client) -> float | None:
    """When the engine was started: it then makes its default network anew. None for one that has no such network.

    One that keeps containers alive while it is restarted keeps its network as well, and ends nothing.
    """
    try:
        return parse_time(str(client.inspect_network("bridge")["Created"]))
    except APIError as error:
        if error.status_code == 404:
            return None
        raise
