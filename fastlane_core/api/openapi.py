"""The API's own description: an OpenAPI 3.1 document, made from the routes and from the payload's model.

Routes of plugins are in it as well, with what their rules and docstrings tell.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from pydantic import BaseModel
from quart import Blueprint, Quart, Response, current_app
from werkzeug.routing import Rule

from fastlane_core.api.answers import json_answer
from fastlane_core.api.concurrency import TaskPayload
from fastlane_core.api.context import current_context
from fastlane_core.api.failures import FailureRequest, ReplayRequest
from fastlane_core.api.payload import PayloadSchema, payload_schema
from fastlane_core.api.retries import RetryRequest
from fastlane_core.api.schedules import SchedulePreview
from fastlane_core.models import Json, JsonObject

blueprint = Blueprint("openapi", __name__)

#: Key of the document among the extensions of the Quart application.
_DOCUMENT = "fastlane.openapi"
#: Methods that OpenAPI has a place for; others, and those that Quart adds by itself, are left out.
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_VARIABLE = re.compile(r"<(?:(\w+)(?:\((.*?)\))?:)?(\w+)>")
_JSON = "application/json"
_TEXT = "text/plain"

_TOLD = {
    400: "What was sent cannot be used; `field` names it.",
    403: "A page of another site, or a name that is not this server's.",
    404: "It does not exist.",
    409: "It does not fit the state of what is there: the Idempotency-Key came with another body before, or it runs.",
    412: "What `If-Match` or `If-None-Match` asks for does not hold.",
    413: "The body is too large.",
    500: "An error inside Fastlane; its log tells more under `errorId`.",
    503: "Storage or queue are out of reach, or too many clients follow: try again after `Retry-After` seconds.",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Operation:
    """What a route's rule does not tell."""

    content: str = _JSON
    #: Statuses of errors beside those that every route may give.
    errors: Sequence[int] = ()
    #: Parameters in the query, required where a `*` follows.
    query: Sequence[str] = ()
    #: What status 500 with a body like that of 200 means; elsewhere it is an error like any other.
    unwell: str = ""


_STORED = _Operation(errors=[404, 503])
_OUTPUT = _Operation(content=_TEXT, errors=[404, 503])
_FOLLOW = _Operation(content="application/x-ndjson", errors=[400, 404, 503], query=["after"])
_PAGE = _Operation(content="text/html")
#: Routes that take a job, and the names of all bodies' schemas.
_SUBMITS = ("tasks.enqueue_job", "jobs.put_job")
_KEYED = (*_SUBMITS, "bulk.enqueue_jobs")
_BODIES = {
    **dict.fromkeys(_SUBMITS, "Job"),
    "bulk.enqueue_jobs": "Jobs",
    "tasks.put_task": "TaskPayload",
    "retries.retry_jobs": "RetryRequest",
    "schedules.preview_schedule": "SchedulePreview",
    "failures.replay_failures": "ReplayRequest",
    "failures.dismiss_failures": "FailureRequest",
}
#: Models of bodies that are no job.
_MODELS: Sequence[type[BaseModel]] = (TaskPayload, RetryRequest, SchedulePreview, ReplayRequest, FailureRequest)
_JOBS: JsonObject = {
    "type": "object",
    "required": ["jobs"],
    "properties": {
        "jobs": {
            "type": "array",
            "minItems": 1,
            "maxItems": 10_000,
            "items": {"$ref": "#/components/schemas/Job"},
            "description": "Each may have an `idempotencyKey` of its own. All are checked before one is stored.",
        }
    },
}
_REFERENCE = "#/components/schemas/{model}"
_PRECONDITIONS = {
    "If-Match": "The ETag of an earlier answer: replaces the job only if nobody has since.",
    "If-None-Match": "`*`: makes the job only if there is none of that id.",
}
_OPERATIONS = {
    "tasks.enqueue_job": _Operation(errors=[400, 409, 413, 503]),
    "bulk.enqueue_jobs": _Operation(errors=[400, 409, 413, 503]),
    "tasks.get_tasks": _Operation(errors=[400, 404, 503], query=["page"]),
    "tasks.search_tasks": _Operation(errors=[400, 404, 503], query=["query*", "page"]),
    "tasks.put_task": _Operation(errors=[400, 413, 503]),
    "tasks.get_task": _Operation(errors=[400, 404, 503], query=["cursor"]),
    "jobs.job_details": _STORED,
    "jobs.put_job": _Operation(errors=[400, 409, 412, 413, 503]),
    "jobs.stop_job": _STORED,
    "jobs.job_output": _Operation(content=_TEXT, errors=[400, 404, 503]),
    "retries.retry_job": _Operation(errors=[400, 404, 409, 503], query=["force"]),
    "retries.retry_jobs": _Operation(errors=[400, 404, 413, 503]),
    "failures.get_failures": _Operation(
        errors=[400, 503], query=["task", "reason", "since", "until", "text", "limit", "cursor"]
    ),
    "failures.replay_failures": _Operation(errors=[400, 413, 503]),
    "failures.dismiss_failures": _Operation(errors=[400, 413, 503]),
    "schedules.get_schedule": _Operation(errors=[400, 404, 503], query=["next"]),
    "schedules.pause_job": _Operation(errors=[404, 409, 503]),
    "schedules.resume_job": _Operation(errors=[404, 409, 503]),
    "schedules.preview_schedule": _Operation(errors=[400, 413], query=["next"]),
    "executions.get_job_execution": _STORED,
    "executions.stop_job_execution": _STORED,
    "executions.execution_output": _OUTPUT,
    "follow.follow_job": _FOLLOW,
    "follow.follow_job_execution": _FOLLOW,
    "pages.stream_job": _PAGE,
    "pages.stream_execution": _PAGE,
    "status.healthcheck": _Operation(unwell="Storage or queue do not answer; `errors` tells more."),
    "status.status": _Operation(errors=[503]),
    "openapi.get_document": _Operation(),
}


@blueprint.get("/openapi.json")
async def get_document() -> Response:
    """This document."""
    if _DOCUMENT not in current_app.extensions:
        version = current_context().version
        current_app.extensions[_DOCUMENT] = openapi_document(current_app, payload_schema(), version)
    return json_answer(cast("Json", current_app.extensions[_DOCUMENT]))


def openapi_document(app: Quart, payload: PayloadSchema, version: str) -> JsonObject:
    """The description of everything that `app` serves; `payload` is that of a job."""
    job: dict[str, Json] = payload.model.model_json_schema(ref_template=_REFERENCE)
    parts = cast("dict[str, Json]", job.pop("$defs", {}))
    for model in _MODELS:
        schema: dict[str, Json] = model.model_json_schema(ref_template=_REFERENCE)
        parts.update(cast("dict[str, Json]", schema.pop("$defs", {})))
        parts[model.__name__] = schema
    paths: dict[str, dict[str, Json]] = {}
    names: set[str] = set()
    for rule in app.url_map.iter_rules():
        path = _VARIABLE.sub(r"{\3}", rule.rule)
        described = inspect.getdoc(app.view_functions[rule.endpoint]) or rule.endpoint
        for method in _methods(rule):
            operation_id = _unique(rule.endpoint.rpartition(".")[2], method, names)
            paths.setdefault(path, {})[method.lower()] = {
                "operationId": operation_id,
                "summary": " ".join(described.partition("\n\n")[0].split()),
                "tags": [rule.endpoint.partition(".")[0]],
                "parameters": list(_parameters(rule)),
                "responses": _responses(rule),
                **_request_body(rule),
            }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Fastlane", "version": version, "description": "Runs container commands for anyone."},
        "paths": {path: paths[path] for path in sorted(paths)},
        "components": {"schemas": {**parts, "Job": job, "Jobs": _JOBS, "Error": _ERROR}},
    }


_ERROR: JsonObject = {
    "type": "object",
    "required": ["error", "operation"],
    "properties": {
        "error": {"type": "string", "description": "What is wrong, as a sentence."},
        "operation": {"type": ["string", "null"], "description": "The name of what was asked for."},
        "field": {"type": "string", "description": "Dotted path of what is wrong; empty for the whole body."},
        "errorId": {"type": "string", "description": "What the error is found by in the server's log."},
    },
}


def _methods(rule: Rule) -> Sequence[str]:
    return [method for method in _METHODS if method in (rule.methods or ("GET",))]


def _unique(name: str, method: str, taken: set[str]) -> str:
    candidates = (name, f"{name}_{method.lower()}", *(f"{name}_{number}" for number in range(2, 100)))
    found = next(each for each in candidates if each not in taken)
    taken.add(found)
    return found


def _parameters(rule: Rule) -> Iterator[Json]:
    for converter, arguments, name in _VARIABLE.findall(rule.rule):
        schema: dict[str, Json] = {"type": "integer" if converter == "int" else "string"}
        if converter == "any":
            schema["enum"] = [each.strip() for each in arguments.split(",")]
        yield {"name": name, "in": "path", "required": True, "schema": schema}
    for name in _OPERATIONS.get(rule.endpoint, _Operation()).query:
        yield {
            "name": name.removesuffix("*"),
            "in": "query",
            "required": name.endswith("*"),
            "schema": {"type": "string"},
        }
    if rule.endpoint in _KEYED:
        yield {
            "name": "Idempotency-Key",
            "in": "header",
            "description": "A submission that is repeated with the same key makes no second job.",
            "schema": {"type": "string", "maxLength": 255},
        }
    if rule.endpoint == "jobs.put_job":
        for name, meaning in _PRECONDITIONS.items():
            yield {"name": name, "in": "header", "description": meaning, "schema": {"type": "string"}}


def _request_body(rule: Rule) -> Mapping[str, Json]:
    schema = _BODIES.get(rule.endpoint)
    if schema is None:
        return {}
    content: JsonObject = {_JSON: {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"requestBody": {"required": schema in ("Job", "Jobs", "TaskPayload"), "content": content}}


def _responses(rule: Rule) -> JsonObject:
    if rule.websocket:
        return {"101": {"description": "The WebSocket is open."}, "400": _error_response(400)}
    operation = _OPERATIONS.get(rule.endpoint)
    if operation is None:
        return {"200": {"description": "It worked."}, "default": _error_response(None)}
    schema: JsonObject = {"type": "object"} if operation.content == _JSON else {"type": "string"}
    content: JsonObject = {operation.content: {"schema": schema}}
    responses: dict[str, Json] = {"200": {"description": "It worked.", "content": content}}
    for status in sorted({403, 500, *operation.errors}):
        responses[str(status)] = _error_response(status)
    if operation.unwell:
        responses["500"] = {"description": operation.unwell, "content": content}
    return responses


def _error_response(status: int | None) -> JsonObject:
    schema: JsonObject = {"$ref": "#/components/schemas/Error"}
    return {"description": _TOLD[status] if status else "What is wrong.", "content": {_JSON: {"schema": schema}}}
