"""The one place that turns an exception into an HTTP answer: always JSON, and no internals."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence

import structlog
from quart import Quart, Response, has_request_context, has_websocket_context, request, websocket
from quart.globals import request_ctx, websocket_ctx
from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.routing.exceptions import WebsocketMismatch

from fastlane_core.errors import (
    Conflict,
    FastlaneError,
    InvalidInput,
    NotFound,
    PreconditionFailed,
    QueueUnavailable,
    StorageUnavailable,
)
from fastlane_core.models import Json

log = structlog.get_logger(__name__)

#: Seconds after which a client whose request met a server that is out of reach may try again.
_RETRY_AFTER = 2

#: Names of operations that clients know, where the handler's own name differs.
_OPERATIONS = {
    "job_details": "get_task",
    "job_output": "retrieve_execution_details",
    "execution_output": "retrieve_execution_details",
}
#: Headers of an HTTP error that say how to go on.
_KEPT_HEADERS = ("Allow", "Retry-After", "WWW-Authenticate")
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


class Refused(FastlaneError):
    """The request may not be made from where it comes."""


class TooManyFollowers(FastlaneError):
    """More clients follow output than this process serves."""


def json_answer(body: Json, status: int = 200) -> Response:
    """`body` as JSON with sorted keys."""
    return Response(_ENCODER.encode(body), status=status, content_type="application/json")


def answer_errors(app: Quart) -> None:
    """Give `app` an answer for every exception."""
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(FastlaneError, _fastlane_error)
    app.register_error_handler(Exception, _unexpected)


def log_unexpected(error: BaseException) -> str:
    """Write an unexpected error to the log; the id that it is found by."""
    error_id = secrets.token_hex(6)
    log.error("unexpected error", error_id=error_id, operation=_operation(), path=_path(), exc_info=error)
    return error_id


async def _fastlane_error(error: FastlaneError) -> Response:
    if isinstance(error, InvalidInput):
        return _error(400, str(error), field=error.field, problems=error.problems)
    if isinstance(error, NotFound):
        return _error(404, str(error))
    if isinstance(error, PreconditionFailed):
        return _error(412, str(error))
    if isinstance(error, Conflict):
        return _error(409, str(error))
    if isinstance(error, Refused):
        return _error(403, str(error))
    if isinstance(error, StorageUnavailable | QueueUnavailable | TooManyFollowers):
        if not isinstance(error, TooManyFollowers):
            log.warning("a server is out of reach", operation=_operation(), error=str(error))
            answer = _error(503, "the storage or the queue is out of reach at the moment; try again in a while")
        else:
            answer = _error(503, str(error))
        answer.headers["Retry-After"] = str(_RETRY_AFTER)
        return answer
    return await _unexpected(error)


async def _http_error(error: HTTPException) -> Response:
    error = _with_slash(error)
    if error.response is not None or error.code is None or error.code < 400:
        # Not an error but an answer: a redirect, or one that somebody raised ready-made.
        return error.get_response()  # type: ignore[return-value]
    text = error.description or error.name
    if isinstance(error, WebsocketMismatch):
        text = "this address is spoken to by WebSocket, and only there: /ws"
    answer = _error(error.code, text)
    for name, value in error.get_headers():
        if name in _KEPT_HEADERS:
            answer.headers[name] = value
    return answer


def _with_slash(error: HTTPException) -> HTTPException:
    """What the same address with a slash at its end would be told, where it lacks one and was not found.

    Without the slash, werkzeug finds no rule whose methods it could tell.
    """
    asked = request_ctx.request if has_request_context() else websocket_ctx.websocket
    adapter = request_ctx.url_adapter if has_request_context() else websocket_ctx.url_adapter
    if error is not asked.routing_exception or error.code != 404 or asked.path.endswith("/") or adapter is None:
        return error
    try:
        adapter.match(f"{asked.path}/", asked.method)
    except (MethodNotAllowed, WebsocketMismatch) as better:
        return better
    except HTTPException:
        return error
    return error


async def _unexpected(error: Exception) -> Response:
    error_id = log_unexpected(error)
    return _error(500, f"an error inside Fastlane; its log tells more under the id {error_id}", error_id=error_id)


def _error(
    status: int,
    text: str,
    *,
    field: str | None = None,
    error_id: str | None = None,
    problems: Sequence[tuple[str, str]] = (),
) -> Response:
    body: dict[str, Json] = {"error": text, "operation": _operation()}
    if field is not None:
        body["field"] = field
    if problems:
        body["problems"] = [{"field": name, "error": problem} for name, problem in problems]
    if error_id is not None:
        body["errorId"] = error_id
    return json_answer(body, status)


def _operation() -> str | None:
    """The name of what was asked for; None where no address matched."""
    endpoint: str | None = None
    if has_request_context():
        endpoint = request.endpoint
    elif has_websocket_context():
        endpoint = websocket.endpoint
    if endpoint is None:
        return None
    name = endpoint.rpartition(".")[2]
    return _OPERATIONS.get(name, name)


def _path() -> str | None:
    if has_request_context():
        return request.path
    return websocket.path if has_websocket_context() else None
