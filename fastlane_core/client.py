"""A client for Python programs.

    with FastlaneClient("http://127.0.0.1:10000") as fastlane:
        job = fastlane.submit("reports", "busybox", "echo hello")
        for item in fastlane.follow(job["taskId"], job["jobId"], job["executionId"]):
            if isinstance(item, OutputPiece):
                print(item.data)
            elif isinstance(item, Result):
                print(item.status, item.exit_code)

    ClientError
    ├── ServerUnreachable     no answer, or one that says to come back later
    └── UnexpectedAnswer      an answer that this client does not understand, or an error inside the server

What the server refuses raises InvalidInput, NotFound or Conflict, with the server's sentence.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from urllib.parse import quote, urlsplit

import httpx

from fastlane_core.engine.backoff import Backoff
from fastlane_core.errors import Conflict, FastlaneError, InvalidInput, NotFound
from fastlane_core.models import Json, JsonObject, Status, Stream

#: Seconds without a sign of life after which a stream counts as cut; the server gives one every 15.
_SILENCE = 45.0
_MAX_LINE_BYTES = 16 * 1024 * 1024


class ClientError(FastlaneError):
    """Base of what goes wrong between client and server."""


class ServerUnreachable(ClientError):
    """The server did not answer in time, or said that it cannot at the moment."""


class UnexpectedAnswer(ClientError):
    """The server answered with something that this client does not understand, or with an error of its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputPiece:
    """Output, exactly as it was written; pieces of one stream follow each other without a gap."""

    stream: Stream
    data: bytes
    #: Where `follow` goes on behind it.
    sequence: int


@dataclass(frozen=True, kw_only=True, slots=True)
class StatusChange:
    """The execution has not ended, but something about it is new."""

    status: Status
    #: Why it has not started yet, where that is known.
    waiting_for: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """How the execution ended."""

    status: Status
    exit_code: int | None
    reason: str | None
    message: str | None
    #: Whether output beyond the server's limit was dropped.
    output_limit_reached: bool
    #: The execution that tries it again, if there is one.
    retry_id: str | None


FollowItem = OutputPiece | StatusChange | Result


class FastlaneClient:
    """Talks to one Fastlane. Not to be shared between threads; use it as a context manager, or `close` it."""

    def __init__(self, url: str, *, timeout: float = 10.0) -> None:
        """`url` is where the API listens; `timeout` is in seconds, per request. Raises ClientError for a bad URL."""
        host = _server_host(url)
        self.url = url.rstrip("/")
        # Proxies from the environment are for the world outside, which a loopback address is not part of.
        self._http = httpx.Client(timeout=timeout, trust_env=not _is_loopback(host))

    def __enter__(self) -> FastlaneClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of connections."""
        self._http.close()

    def submit(
        self,
        task: str,
        image: str,
        command: str | Sequence[str],
        *,
        idempotency_key: str | None = None,
        **fields: Json,
    ) -> JsonObject:
        """Submit a job; the server's answer with `jobId`, `executionId`, `jobUrl` and more.

        `fields` are those of the payload: `envs`, `timeout`, `retries`, … With an idempotency key, the same call may
        be repeated without making a second job. Raises InvalidInput, Conflict, ServerUnreachable, UnexpectedAnswer.
        """
        body: dict[str, Json] = {**fields, "image": image}
        body["command"] = command if isinstance(command, str) else list(command)
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return self._call("POST", _path("tasks", task), body, headers)

    def job(self, task: str, job: str) -> JsonObject:
        """A job's details. Raises NotFound, ServerUnreachable, UnexpectedAnswer."""
        return self._call("GET", _path("tasks", task, "jobs", job))

    def execution(self, task: str, job: str, execution: str) -> JsonObject:
        """An execution's details. Raises NotFound, ServerUnreachable, UnexpectedAnswer."""
        return self._call("GET", _path("tasks", task, "jobs", job, "executions", execution))

    def stop(self, task: str, job: str, execution: str | None = None) -> JsonObject:
        """Stop a job, or one of its executions. Raises NotFound, ServerUnreachable, UnexpectedAnswer."""
        below = ("executions", execution) if execution else ()
        return self._call("POST", _path("tasks", task, "jobs", job, *below, "stop"))

    def follow(
        self,
        task: str,
        job: str,
        execution: str,
        *,
        after: int = 0,
        patience: float = 300.0,
        expected: bool = False,
    ) -> Iterator[FollowItem]:
        """The output of an execution beyond sequence `after` as it comes, then its Result as the last item.

        A connection that breaks is made anew, where it was cut, for `patience` seconds without success. `expected`
        waits as long also for an execution that does not exist yet, like one that is to try another again.
        Raises NotFound, ServerUnreachable, UnexpectedAnswer.
        """
        path = _path("tasks", task, "jobs", job, "executions", execution, "follow")
        backoff = Backoff(first=0.2, cap=5.0)
        failures = 0
        heard_at = time.monotonic()
        while True:
            try:
                for line in self._lines(path, after):
                    failures, heard_at = 0, time.monotonic()
                    item = _item(line)
                    if item is None:
                        continue
                    if isinstance(item, OutputPiece):
                        after = item.sequence
                    yield item
                    # Whoever takes its time with an item was not cut off meanwhile.
                    heard_at = time.monotonic()
                    if isinstance(item, Result):
                        return
                trouble: FastlaneError = ServerUnreachable(f"{self.url} ended the stream before the execution ended")
            except ServerUnreachable as error:
                trouble = error
            except NotFound as error:
                if not expected:
                    raise
                trouble = error
            failures += 1
            delay = backoff.delay(failures, floor=0.05)
            if time.monotonic() + delay - heard_at > patience:
                raise trouble
            time.sleep(delay)

    def _call(
        self, method: str, path: str, body: JsonObject | None = None, headers: Mapping[str, str] | None = None
    ) -> JsonObject:
        try:
            content = json.dumps(body).encode() if body is not None else None
        except (TypeError, ValueError) as error:
            raise InvalidInput("", f"the job cannot be written as JSON: {error}") from None
        try:
            answer = self._http.request(
                method,
                self.url + path,
                content=content,
                headers={"Content-Type": "application/json", **(headers or {})} if content else headers,
            )
        except httpx.HTTPError as error:
            raise ServerUnreachable(f"{self.url} does not answer: {error or type(error).__name__}") from error
        if answer.status_code != 200:
            raise _refusal(answer.status_code, answer.text)
        return _object(answer.text)

    def _lines(self, path: str, after: int) -> Iterator[JsonObject]:
        timeout = httpx.Timeout(self._http.timeout.connect, read=_SILENCE)
        try:
            with self._http.stream("GET", self.url + path, params={"after": after}, timeout=timeout) as answer:
                if answer.status_code != 200:
                    answer.read()
                    raise _refusal(answer.status_code, answer.text)
                rest = bytearray()
                for data in answer.iter_bytes():
                    rest += data
                    *lines, last = rest.split(b"\n")
                    rest = bytearray(last)
                    if len(rest) > _MAX_LINE_BYTES:
                        raise UnexpectedAnswer(f"a line of more than {_MAX_LINE_BYTES} bytes in the stream")
                    for line in lines:
                        yield _object(line.decode())
        except httpx.HTTPError as error:
            raise ServerUnreachable(f"{self.url} was cut off: {error or type(error).__name__}") from error


def _item(line: JsonObject) -> FollowItem | None:
    """What a line of the stream tells; None for a sign of life, and for what a newer server may add."""
    try:
        if "seq" in line:
            encoded = line.get("base64")
            data = base64.b64decode(str(encoded)) if encoded is not None else str(line["data"]).encode()
            return OutputPiece(stream=Stream(str(line["stream"])), data=data, sequence=int(str(line["seq"])))
        if "status" not in line:
            return None
        status = Status(str(line["status"]))
        if not status.is_final:
            return StatusChange(status=status, waiting_for=_text(line.get("waitingFor")))
        exit_code = line.get("exitCode")
        return Result(
            status=status,
            exit_code=exit_code if isinstance(exit_code, int) else None,
            reason=_text(line.get("reason")),
            message=_text(line.get("message")),
            output_limit_reached=bool(line.get("outputLimitReached")),
            retry_id=_text(line.get("retryId")),
        )
    except (KeyError, ValueError) as error:
        raise UnexpectedAnswer(f"a line of the stream that cannot be understood: {error}") from None


def _refusal(status: int, text: str) -> FastlaneError:
    """The error that an answer with this status tells of."""
    try:
        body = _object(text)
    except UnexpectedAnswer:
        body = {}
    message = _text(body.get("error")) or f"status {status}: {text[:200]!r}"
    field = _text(body.get("field")) or ""
    if status in (400, 413):
        return InvalidInput(field, message.removeprefix(f"{field}: "))
    if status == 404:
        return NotFound(message)
    if status == 409:
        return Conflict(message)
    if status in (429, 502, 503, 504):
        return ServerUnreachable(message)
    return UnexpectedAnswer(message)


def _object(text: str) -> JsonObject:
    try:
        document = json.loads(text)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise UnexpectedAnswer(f"expected a JSON object, got {text[:200]!r}: is this a Fastlane?")
    return document


def _server_host(url: str) -> str:
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return parts.hostname
    except ValueError:
        pass
    raise ClientError(f"{url!r} is no URL of a server: expected one like http://127.0.0.1:10000")


def _path(*parts: str) -> str:
    return "".join(f"/{quote(part, safe='')}" for part in parts) + "/"


def _text(value: Json) -> str | None:
    return value if isinstance(value, str) else None


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
