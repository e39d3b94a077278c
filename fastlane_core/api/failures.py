"""What failed for good, as a list that is worked off: replayed, edited and replayed, or dismissed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from quart import Blueprint, Response, request

from fastlane_core.api.answers import json_answer
from fastlane_core.api.bodies import parse_json_object, parsed_body
from fastlane_core.api.context import ApiContext, current_context
from fastlane_core.api.links import Links, request_links
from fastlane_core.api.moments import moment
from fastlane_core.api.payload import PayloadSchema, payload_schema
from fastlane_core.api.times import iso_time
from fastlane_core.contracts.storage import FailureFilter, ended_at
from fastlane_core.engine.failures import Handled
from fastlane_core.errors import InvalidInput
from fastlane_core.models import Execution, Json, Reason, RunSpec

blueprint = Blueprint("failures", __name__, url_prefix="/failures")

_LISTED, _MOST_LISTED = 50, 500
_MOST = 10_000
#: Failures that one request works off before it looks at the time.
_STRETCH = 200
#: Seconds that one request works; more by its `cursor`.
_SECONDS = 2.0
_LONGEST_TEXT = 1000
#: Fields of a job that are the job's, not those of a run of it.
_OF_RUNS = frozenset({"image", "command", "envs", "timeout", "queueTimeout", "pullTimeout"})


class FailureSelection(BaseModel):
    """Which of the executions that failed for good. What is not given does not matter."""

    model_config = ConfigDict(extra="forbid", strict=True)

    task: str | None = Field(default=None, description="Of this task.")
    reason: str | list[str] | None = Field(default=None, description="Reason codes: one, or a list.")
    since: float | str | None = Field(
        default=None, description="Ended then or later: Unix time in seconds, or ISO 8601 with an offset."
    )
    until: float | str | None = Field(default=None, description="Ended before that, in either form.")
    text: str | None = Field(
        default=None, max_length=_LONGEST_TEXT, description="The message contains it, in any case."
    )


class FailureRequest(BaseModel):
    """Executions by their ids, or all that a filter selects: give one of the two."""

    model_config = ConfigDict(extra="forbid", strict=True)

    ids: list[str] | None = Field(default=None, max_length=_MOST, description="Ids of executions.")
    filter: FailureSelection | None = Field(default=None, description="Which of the open failures; {} for all.")
    limit: int = Field(default=1000, ge=1, le=_MOST, description="With a filter: how many at most.")
    cursor: str | None = Field(default=None, description="The `cursor` of the answer before: goes on from there.")


class ReplayRequest(FailureRequest):
    """Executions to run once more, as they were or edited."""

    changes: dict[str, JsonValue] | None = Field(
        default=None,
        description="Fields of the job's payload that differ this time: image, command, timeout, envs (added to what "
        "was there; null takes one away), or a runner's options (likewise).",
    )


Model = TypeVar("Model", bound=BaseModel)
Handle = Callable[[Sequence[Execution]], Awaitable[Sequence[Handled]]]


@blueprint.get("/")
async def get_failures() -> Response:
    """Executions that failed and are not tried again by themselves, latest end first."""
    context = current_context()
    wanted = _filter(_parsed(FailureSelection, _query_fields()))
    limit = _query_limit()
    page = await context.storage.list_failures(wanted, cursor=request.args.get("cursor") or None, limit=limit)
    links = request_links(context)
    return json_answer({"items": [_item(each, links) for each in page.items], "cursor": page.cursor})


@blueprint.post("/replay/")
async def replay_failures() -> Response:
    """Run executions that failed for good once more, now."""
    context = current_context()
    wanted, _ = await parsed_body(lambda body: _parsed(ReplayRequest, parse_json_object(body)))
    edit = _Edit(context, payload_schema(), wanted.changes or {})
    return await _work_off(context, wanted, lambda failed: context.failures.replay(failed, edit))


@blueprint.post("/dismiss/")
async def dismiss_failures() -> Response:
    """Put executions that failed for good aside: they are not listed any more."""
    context = current_context()
    wanted, _ = await parsed_body(lambda body: _parsed(FailureRequest, parse_json_object(body)))
    return await _work_off(context, wanted, context.failures.dismiss)


class _Edit:
    """Makes the spec of a replay: that of the failed run, with changes."""

    def __init__(self, context: ApiContext, schema: PayloadSchema, changes: Mapping[str, JsonValue]) -> None:
        """Raises InvalidInput for a change of what does not belong to a run."""
        self._context = context
        self._schema = schema
        self._changes = changes
        runners = {runner.name for runner in context.routing.runners}
        for name in changes:
            if name not in _OF_RUNS | runners:
                known = ", ".join(sorted(_OF_RUNS | runners))
                raise InvalidInput(f"changes.{name[:100]}", f"cannot be changed for one run: expected {known}")

    def __call__(self, failed: Execution, lane: str) -> RunSpec:
        if not self._changes:
            return failed.spec
        spec = failed.spec
        document: dict[str, Json] = {
            "image": spec.image,
            "command": spec.command,
            "envs": dict(spec.env),
            "timeout": spec.timeout,
            "queueTimeout": spec.queue_timeout,
            "pullTimeout": spec.pull_timeout,
            **spec.options,
        }
        for name, value in self._changes.items():
            before = document.get(name)
            if isinstance(before, Mapping) and isinstance(value, Mapping):
                merged = {**before, **value}
                document[name] = cast("Json", {key: each for key, each in merged.items() if each is not None})
            else:
                document[name] = cast("Json", value)
        context = self._context
        return self._schema.check(document, context.routing.runner_of(lane).name, now=context.clock()).spec


async def _work_off(context: ApiContext, wanted: FailureRequest, handle: Handle) -> Response:
    """Handle what is wanted, a stretch at a time, for as long as one request may take."""
    if (wanted.ids is None) == (wanted.filter is None):
        raise InvalidInput("ids" if wanted.ids else "filter", "expected either ids or a filter ({} for all failures)")
    handled: list[Handled] = []
    unknown: list[str] = []
    cursor = wanted.cursor
    if wanted.ids is not None:
        ids = list(dict.fromkeys(wanted.ids))
        for first in range(0, len(ids), _STRETCH):
            stretch = ids[first : first + _STRETCH]
            found = await asyncio.gather(*(context.storage.get_execution(each) for each in stretch))
            unknown += [name for name, execution in zip(stretch, found, strict=True) if execution is None]
            handled += await handle([each for each in found if each is not None])
    else:
        loop = asyncio.get_running_loop()
        end = loop.time() + _SECONDS
        which = _filter(wanted.filter or FailureSelection())
        while True:
            room = min(_STRETCH, wanted.limit - len(handled))
            page = await context.storage.list_failures(which, cursor=cursor, limit=room)
            handled += await handle(page.items)
            cursor = page.cursor
            if cursor is None or len(handled) >= wanted.limit or loop.time() > end:
                break
    links = request_links(context)
    done = [each for each in handled if not each.refusal]
    refused: list[Json] = [{"executionId": each.failed.id, "error": each.refusal} for each in handled if each.refusal]
    refused += [{"executionId": name, "error": "there is no such execution"} for name in unknown]
    return json_answer(
        {"count": len(done), "items": [_done(each, links) for each in done], "refused": refused, "cursor": cursor}
    )


def _done(handled: Handled, links: Links) -> dict[str, Json]:
    failed, replay = handled.failed, handled.replay
    item: dict[str, Json] = {"executionId": failed.id, "jobId": failed.job_id, "taskId": failed.task_id}
    if replay is not None:
        item["replayExecutionId"] = replay.id
        item["replayExecutionUrl"] = links.execution(replay.task_id, replay.job_id, replay.id)
    return item


def _item(failed: Execution, links: Links) -> dict[str, Json]:
    return {
        "executionId": failed.id,
        "executionUrl": links.execution(failed.task_id, failed.job_id, failed.id),
        "jobId": failed.job_id,
        "jobUrl": links.job(failed.task_id, failed.job_id),
        "taskId": failed.task_id,
        "taskUrl": links.task(failed.task_id),
        "image": failed.spec.image,
        "command": failed.spec.command,
        "status": failed.status.value,
        "reason": failed.reason.value if failed.reason else None,
        "message": failed.message,
        "exitCode": failed.exit_code,
        "attempt": failed.attempt,
        "failedAt": iso_time(ended_at(failed)),
    }


def _query_fields() -> dict[str, Json]:
    fields: dict[str, Json] = {}
    for name in FailureSelection.model_fields:
        values = request.args.getlist(name)
        if values and values != [""]:
            fields[name] = values if name == "reason" else values[-1]
    return fields


def _query_limit() -> int:
    text = request.args.get("limit", str(_LISTED))
    if not text.isdecimal() or len(text) > 4 or not 1 <= int(text) <= _MOST_LISTED:
        raise InvalidInput("limit", f"expected a whole number from 1 to {_MOST_LISTED}")
    return int(text)


def _parsed(model: type[Model], document: Mapping[str, Json]) -> Model:
    try:
        return model.model_validate({name: value for name, value in document.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        path = ".".join(str(part)[:100] for part in first["loc"])
        raise InvalidInput(path, f"cannot be used: {first['msg'].lower()}") from None


def _filter(selection: FailureSelection) -> FailureFilter:
    reasons: frozenset[Reason] | None = None
    if selection.reason is not None:
        words = [selection.reason] if isinstance(selection.reason, str) else selection.reason
        try:
            reasons = frozenset(Reason(each) for each in words)
        except ValueError:
            raise InvalidInput("reason", f"expected one of {', '.join(Reason)}, or a list of them") from None
    return FailureFilter(
        task_id=selection.task,
        reasons=reasons,
        since=None if selection.since is None else moment("since", selection.since),
        until=None if selection.until is None else moment("until", selection.until),
        text=selection.text,
    )
