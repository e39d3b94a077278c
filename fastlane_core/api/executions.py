"""Executions: their details, their output, and stopping them."""

from __future__ import annotations

from collections.abc import AsyncIterator

from quart import Blueprint, Response

from fastlane_core.api.answers import json_answer
from fastlane_core.api.context import ApiContext, current_context
from fastlane_core.api.links import request_links
from fastlane_core.api.lookup import find_execution
from fastlane_core.api.outputs import SEPARATOR, read_output
from fastlane_core.api.shapes import execution_shape, exit_code_text, job_link, task_link
from fastlane_core.api.waiting import WaitingReasons
from fastlane_core.models import Execution, Stream

blueprint = Blueprint("executions", __name__, url_prefix="/tasks/<task_id>/jobs/<job_id>/executions/<execution_id>")


@blueprint.get("/")
async def get_job_execution(task_id: str, job_id: str, execution_id: str) -> Response:
    """An execution."""
    context = current_context()
    execution = await find_execution(context, task_id, job_id, execution_id)
    shape = await execution_shape(
        context, execution, WaitingReasons(context), log_bytes=context.limits.execution_log_bytes
    )
    links = request_links(context)
    return json_answer(
        {
            "task": task_link(task_id, links),
            "job": job_link(task_id, job_id, links),
            "execution": shape,
        }
    )


@blueprint.post("/stop/")
async def stop_job_execution(task_id: str, job_id: str, execution_id: str) -> Response:
    """End one execution, and what tries it again; the job's schedule goes on."""
    context = current_context()
    await find_execution(context, task_id, job_id, execution_id)
    await context.stopping.stop_execution(task_id, job_id, execution_id)
    links = request_links(context)
    return json_answer(
        {
            "task": task_link(task_id, links),
            "job": job_link(task_id, job_id, links),
            "execution": {"id": execution_id, "url": links.execution(task_id, job_id, execution_id)},
        }
    )


@blueprint.get("/<any(stdout, stderr, logs):output>/")
async def execution_output(task_id: str, job_id: str, execution_id: str, output: str) -> Response:
    """What the execution has written so far."""
    context = current_context()
    return output_answer(context, await find_execution(context, task_id, job_id, execution_id), output)


def output_answer(context: ApiContext, execution: Execution, output: str) -> Response:
    """The exact bytes of `stdout`, `stderr` or both (`logs`), read from storage while they are sent."""
    answer = Response(_pieces(context, execution.id, output), content_type="text/plain; charset=utf-8")
    answer.headers["Fastlane-Exit-Code"] = exit_code_text(execution)
    # However long a client takes to read gigabytes.
    answer.timeout = None
    return answer


async def _pieces(context: ApiContext, execution_id: str, output: str) -> AsyncIterator[bytes]:
    if output != "logs":
        async for data in read_output(context.storage, execution_id, Stream(output)):
            yield data
        return
    async for data in read_output(context.storage, execution_id, Stream.STDOUT):
        yield data
    yield SEPARATOR.encode()
    async for data in read_output(context.storage, execution_id, Stream.STDERR):
        yield data
