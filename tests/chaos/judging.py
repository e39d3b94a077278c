"""Comparing what was accepted with what the API and the engines tell at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from tests.chaos.deployment import Deployment
from tests.chaos.report import Report
from tests.chaos.workload import CRON, KINDS, Accepted, Client, Kind, task_of
from tests.end_to_end.farm_harness import Witness, containers_of
from tests.end_to_end.service import until

#: Endings that are not the job's, and use up no retry.
FREE = ("engine_lost", "drained")
_UNFINISHED = ("enqueued", "pulling", "running")
#: What Fastlane says of a run whose engine was dead when it ended: engines keep what it writes only while they live.
_CUT_SHORT = "output may be missing"


def attempts_of(client: Client, job: Accepted) -> list[Any]:
    """The executions of a job, oldest first."""
    return list(reversed(client.get(job.path)["job"]["executions"]))


def has_ended(job: Accepted, attempts: Sequence[Any]) -> bool:
    """Whether nothing more is to be expected of the job."""
    chains = _chains(attempts)
    return len(chains) >= max(1, len(job.ticks)) and all(_is_over(job.kind, chain) for chain in chains)


def _chains(attempts: Sequence[Any]) -> Sequence[Sequence[Any]]:
    """The attempts at each run that was wanted: one of a job, or one of each tick."""
    chains: dict[str, list[Any]] = {}
    for each in attempts:
        chain = chains.get(each["retryOf"], [])
        chain.append(each)
        chains[each["executionId"]] = chain
    return [chain for execution, chain in chains.items() if chain[0]["executionId"] == execution]


def _is_over(kind: Kind, attempts: Sequence[Any]) -> bool:
    if any(each["status"] in _UNFINISHED for each in attempts):
        return False
    last = attempts[-1]
    if last["reason"] in FREE:
        # Something follows, unless too many engines were lost in a row, which is then judged as any bad end.
        return last["nextRetryAt"] is None
    counted = sum(each["reason"] not in FREE for each in attempts)
    return last["status"] != "failed" or counted > kind.retries


def judge(deployment: Deployment, client: Client, witness: Witness, report: Report) -> None:
    """Fill in the report once everything has had the time to end."""
    report.accepted.update(job.kind.name for job in client.accepted)
    report.repeats = client.repeats
    by_execution: dict[str, Any] = {}
    for job in client.accepted:
        attempts = attempts_of(client, job)
        by_execution |= {each["executionId"]: each for each in attempts}
        report.attempts.update(str(each["reason"]) for each in attempts)
        report.final += has_ended(job, attempts)
        report.problems += [f"{job.kind.name} {job.path}: {each}" for each in _wrong_with(job, attempts, report)]
    _judge_acceptance(client, report)
    _judge_containers(deployment, witness, by_execution, report)
    _judge_slots(client, report)


def _wrong_with(job: Accepted, attempts: Sequence[Any], report: Report) -> list[str]:
    """What should not have become of one job."""
    if not has_ended(job, attempts):
        return [f"has not ended: {[(each['status'], each['reason']) for each in attempts]}"]
    chains = _chains(attempts)
    problems = [each for chain in chains for each in _wrong_with_run(job.kind, chain, report)]
    ticks = [_tick(chain[0]) for chain in chains]
    if sorted(ticks, key=str) != sorted(job.ticks or [None], key=str):
        problems.append(f"ran at the ticks {ticks}, not {list(job.ticks)}")
    return problems


def _tick(execution: Any) -> int | None:
    """When its schedule had it run, by Unix time."""
    at = execution["scheduledFor"]
    return None if at is None else int(datetime.fromisoformat(at).replace(tzinfo=UTC).timestamp())


def _wrong_with_run(kind: Kind, attempts: Sequence[Any], report: Report) -> list[str]:
    problems: list[str] = []
    last = attempts[-1]
    expected = "done" if kind.exit_code == 0 else "failed"
    if (last["status"], last["exitCode"]) != (expected, kind.exit_code):
        problems.append(f"ended as {last['status']} ({last['exitCode']}, {last['reason']}: {last['message']})")
    counted = sum(each["reason"] not in FREE for each in attempts)
    wanted = 1 if kind.exit_code == 0 else 1 + kind.retries
    if counted != wanted:
        reasons = [each["reason"] for each in attempts]
        problems.append(f"took {counted} attempts that count, not {wanted}: {reasons}")
    for each in attempts:
        is_free = each["reason"] in FREE
        is_cut_short = _CUT_SHORT in str(each["message"])
        report.cut_short += is_cut_short
        for stream, text, whole in (("stdout", each["log"], kind.stdout), ("stderr", each["error"], kind.stderr)):
            # Of an attempt that ended without a run `error` is the message.
            written = "" if stream == "stderr" and is_free and text == each["message"] else text or ""
            report.characters += len(written)
            may_end_early = is_free or is_cut_short
            if not (whole.startswith(written) if may_end_early else written == whole):
                same = next(
                    (at for at, pair in enumerate(zip(written, whole, strict=False)) if len(set(pair)) > 1), len(whole)
                )
                told = f"{len(written)} characters instead of {len(whole)}, right up to the {same}th"
                problems.append(
                    f"{stream} of attempt {each['attempt']} ({each['reason']}, {each['message']}) has {told}"
                )
    return problems


def _judge_acceptance(client: Client, report: Report) -> None:
    """Each submission is one job, however often it was repeated."""
    paths = {job.path for job in client.accepted}
    if len(paths) != len(client.accepted):
        report.problems.append("two submissions got the same job")
    found = {path for kind in (*KINDS, CRON) for path in client.jobs_of(task_of(kind))}
    report.problems += [f"{path} was submitted by nobody" for path in found - paths]
    report.problems += [f"{path} is not in the list of its task" for path in paths - found]


def _judge_containers(deployment: Deployment, witness: Witness, attempts: dict[str, Any], report: Report) -> None:
    """By the engines' events and what they hold at the end: one that is killed may not tell of its last events."""
    created: dict[str, set[tuple[int, str]]] = {each: set(witness.containers(each)) for each in witness.executions}
    there: Counter[str] = Counter()
    for number, engine in enumerate(deployment.engines):
        for execution, found in containers_of(deployment.id, engine).items():
            created.setdefault(execution, set()).update((number, each["Id"]) for each in found)
            there[execution] += len(found)
    report.containers = sum(map(len, created.values()))
    report.without_container = sum(each not in there for each in attempts)
    for execution, containers in created.items():
        if execution not in attempts:
            report.problems.append(f"execution {execution}, which no job has, had {len(containers)} containers")
        if len(containers) > 1:
            starts = sum(map(witness.was_started, containers))
            report.problems.append(f"execution {execution} had {len(containers)} containers, {starts} of them started")
    for execution, starts in witness.count("start").items():
        if starts > 1:
            report.problems.append(f"the container of execution {execution} was started {starts} times")
    for execution, attempt in attempts.items():
        # The container of one that an engine's death kept from starting is removed; every other one is kept.
        if there[execution] != 1 and attempt["reason"] not in FREE:
            report.problems.append(f"execution {execution} ({attempt['reason']}) has {there[execution]} containers")


def _judge_slots(client: Client, report: Report) -> None:
    lane: Any = None

    def is_free() -> bool:
        nonlocal lane
        lane = client.get("/status/")["lanes"]["docker:all"]
        report.leased = lane["leased"]
        return lane["leased"] == lane["waiting"] == lane["delayed"] == 0

    try:
        until("no slot is taken", is_free, 60, 0.5)
    except AssertionError:
        report.problems.append(f"slots leaked: {lane}")
