"""`fastlane run`: submit a job and stay with it, as if its command ran here."""

from __future__ import annotations

import os
import re
import sys
import uuid
from collections.abc import Sequence
from contextlib import suppress
from typing import BinaryIO

import click

from fastlane_core.client import FastlaneClient, Result, StatusChange
from fastlane_core.errors import FastlaneError
from fastlane_core.models import Status, Stream

#: What shells and `docker run` use: an error that is not the command's, Ctrl-C (SIGINT), a closed pipe (SIGPIPE).
_NOT_THE_COMMAND = 125
_INTERRUPTED = 130
_PIPE_CLOSED = 141
#: Reasons that the exit code alone tells.
_PLAIN_REASONS = ("succeeded", "exit_code")


@click.command("run")
@click.argument("image")
@click.argument("arguments", metavar="[-- COMMAND...]", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--url",
    envvar="FASTLANE_URL",
    default="http://127.0.0.1:10000",
    show_default=True,
    show_envvar=True,
    help="Where the API listens.",
)
@click.option("--task", default="run", show_default=True, help="Task that the job belongs to.")
@click.option("-e", "--env", "envs", metavar="NAME=VALUE", multiple=True, help="Environment variable; repeatable.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), help="Seconds that it may take.")
@click.option("--detach", is_flag=True, help="Do not wait: print the job's URL and end.")
def command(
    image: str,
    arguments: tuple[str, ...],
    url: str,
    task: str,
    envs: tuple[str, ...],
    timeout: float | None,
    detach: bool,
) -> None:
    """Run a command in IMAGE and follow its output.

    Output goes to stdout and stderr as it was written. Ends with the command's exit code; with 125 when there is none
    (it was refused, could not be started, timed out, was stopped, or the server is out of reach), 130 after Ctrl-C
    and 141 when nobody reads the output any more; these two stop the job.
    """
    try:
        with FastlaneClient(url) as client:
            fields = {"envs": _environment(envs), "timeout": timeout}
            job = client.submit(task, image, arguments, idempotency_key=str(uuid.uuid4()), **fields)
            if detach:
                click.echo(str(job["jobUrl"]))
                return
            code = _stay(client, task, str(job["jobId"]), str(job["executionId"]))
    except FastlaneError as error:
        _say(str(error))
        code = _NOT_THE_COMMAND
    except KeyboardInterrupt:
        _say("interrupted while submitting: the job may have been accepted, and may run")
        code = _INTERRUPTED
    sys.exit(code)


def _stay(client: FastlaneClient, task: str, job: str, execution: str) -> int:
    """Follow the job to its end; the exit code to end with."""
    try:
        result = _copy(client, task, job, execution)
        while result.retry_id is not None:
            _say(f"{result.message or result.status}; trying again")
            result = _copy(client, task, job, result.retry_id, expected=True)
        return _exit_code(result)
    except KeyboardInterrupt:
        _stop(client, task, job)
        return _INTERRUPTED
    except BrokenPipeError:
        _leave_closed_pipe()
        _stop(client, task, job)
        return _PIPE_CLOSED


def _copy(client: FastlaneClient, task: str, job: str, execution: str, *, expected: bool = False) -> Result:
    """Copy output to this process's own; the execution's end."""
    said = ""
    own: dict[Stream, BinaryIO] = {Stream.STDOUT: sys.stdout.buffer, Stream.STDERR: sys.stderr.buffer}
    for item in client.follow(task, job, execution, expected=expected):
        if isinstance(item, Result):
            return item
        if isinstance(item, StatusChange):
            news = _news(item.waiting_for or "")
            if news and news != said:
                _say(f"waiting: {item.waiting_for}")
            said = news or said
            continue
        own[item.stream].write(item.data)
        own[item.stream].flush()
    raise FastlaneError(f"the server told no end of execution {execution}")


def _news(reason: str) -> str:
    """What of a reason is worth a line: for people all of it, in a file not how the numbers in it go on."""
    return reason if sys.stderr.isatty() else re.sub(r"[0-9.]+", "#", reason)


def _exit_code(result: Result) -> int:
    if result.output_limit_reached:
        _say("the output is longer than the server keeps: its end is missing")
    if result.status in (Status.DONE, Status.FAILED) and result.exit_code is not None:
        if result.message and result.reason not in _PLAIN_REASONS:
            _say(result.message)
        return result.exit_code
    _say(result.message or f"the job ended as {result.status}")
    return _NOT_THE_COMMAND


def _stop(client: FastlaneClient, task: str, job: str) -> None:
    try:
        client.stop(task, job)
        _say("the job is being stopped")
    except FastlaneError as error:
        _say(f"the job {job} of task {task} could not be stopped and may go on: {error}")


def _environment(pairs: Sequence[str]) -> dict[str, str]:
    envs: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise click.BadParameter(f"expected NAME=VALUE, got {name!r}", param_hint="--env")
        envs[name] = value
    return envs


def _say(text: str) -> None:
    with suppress(BrokenPipeError):
        click.echo(f"fastlane: {text}", err=True)


def _leave_closed_pipe() -> None:
    """Point stdout nowhere: Python flushes it at exit, which must not fail again ("Note on SIGPIPE" in its docs)."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
