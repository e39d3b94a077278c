"""Live output as text over a WebSocket, in the way that clients of the first Fastlane know.

| the execution is | frames | closed with 1000 and |
|---|---|---|
| running | its output, both streams, as it comes, from its start | `done` once it has ended |
| ended | `EXIT CODE: <n>`, stdout, a separator, stderr | `done` |
| enqueued, pulling, or there is none yet | none | `retry`: connect again later |

What does not exist is closed with 4404, an error inside Fastlane with 1011; the server's end counts as `retry`.
"""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import AsyncIterator
from contextlib import aclosing

import structlog
from quart import Blueprint, websocket

from fastlane_core.api.answers import TooManyFollowers, log_unexpected
from fastlane_core.api.context import ApiContext, current_context
from fastlane_core.api.live import follow_execution, followers
from fastlane_core.api.lookup import find_execution, find_job, last_execution
from fastlane_core.api.outputs import SEPARATOR, read_output, text_decoder
from fastlane_core.api.shapes import exit_code_text
from fastlane_core.errors import NotFound, StorageUnavailable
from fastlane_core.models import Execution, LogChunk, Status, Stream

log = structlog.get_logger(__name__)

blueprint = Blueprint("websocket", __name__, url_prefix="/tasks/<task_id>/jobs/<job_id>")

#: Bytes of output in one frame. Escaped they are four times as many, and many clients refuse frames over 1 MiB.
_FRAME_BYTES = 128 * 1024

#: Seconds that a client has to answer that it closes.
_CLOSING_SECONDS = 5.0

_DONE = (1000, "done")
_RETRY = (1000, "retry")


@blueprint.websocket("/ws/")
async def job_websocket(task_id: str, job_id: str) -> None:
    """Show the job's newest execution."""
    await _serve(task_id, job_id, None)


@blueprint.websocket("/executions/<execution_id>/ws/")
async def execution_websocket(task_id: str, job_id: str, execution_id: str) -> None:
    """Show an execution."""
    await _serve(task_id, job_id, execution_id)


async def _serve(task_id: str, job_id: str, execution_id: str | None) -> None:
    context = current_context()
    await websocket.accept()
    listening = asyncio.create_task(_ignore_messages())
    try:
        with followers().one_more():
            code, reason = await _show(context, task_id, job_id, execution_id)
    except NotFound:
        code, reason = 4404, "there is no such job or execution"
    except (StorageUnavailable, TooManyFollowers) as error:
        log.warning("a WebSocket has to be retried", path=websocket.path, error=str(error))
        code, reason = _RETRY
    except Exception as error:
        code, reason = 1011, f"error {log_unexpected(error)} inside Fastlane"
    finally:
        listening.cancel()
    await websocket.close(code, reason)
    # When this returns the server hangs up, and a browser whose answer is still on its way takes that for a lost
    # connection, without a reason. The answer cancels this.
    await asyncio.sleep(_CLOSING_SECONDS)


async def _ignore_messages() -> None:
    """Drop what the client says: it would pile up otherwise."""
    while True:
        await websocket.receive()


async def _show(context: ApiContext, task_id: str, job_id: str, execution_id: str | None) -> tuple[int, str]:
    """Send what there is; code and reason to close with. Raises NotFound, StorageUnavailable."""
    job = await find_job(context, task_id, job_id)
    if execution_id is None:
        execution = await last_execution(context, job)
    else:
        execution = await find_execution(context, task_id, job_id, execution_id)
    if execution is None or execution.status in (Status.ENQUEUED, Status.PULLING):
        return _RETRY
    if execution.status is Status.RUNNING:
        return await _show_running(context, execution)
    await websocket.send(f"EXIT CODE: {exit_code_text(execution)}\n")
    await _send_stream(context, execution, Stream.STDOUT)
    await websocket.send(SEPARATOR)
    await _send_stream(context, execution, Stream.STDERR)
    return _DONE


async def _show_running(context: ApiContext, execution: Execution) -> tuple[int, str]:
    decoders = {stream: text_decoder() for stream in Stream}
    async with aclosing(follow_execution(context, execution.id, after=0)) as happenings:
        async for happening in happenings:
            if isinstance(happening, LogChunk):
                await _send_text(decoders[happening.stream], happening.data)
            elif isinstance(happening, Execution) and happening.status.is_final:
                for decoder in decoders.values():
                    await _send_text(decoder, b"", final=True)
                return _DONE
    return _RETRY


async def _send_stream(context: ApiContext, execution: Execution, stream: Stream) -> None:
    """Send a whole stream: in one frame, unless it is too long for one."""
    decoder = text_decoder()
    gathered: list[str] = []
    sent = False
    async for data in _frames(read_output(context.storage, execution.id, stream)):
        if gathered:
            await websocket.send(gathered.pop())
            sent = True
        gathered.append(decoder.decode(data))
    last = "".join(gathered) + decoder.decode(b"", final=True)
    if last or not sent:
        await websocket.send(last)


async def _frames(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes, in pieces of the size of a frame."""
    buffer = bytearray()
    async for data in pieces:
        buffer += data
        while len(buffer) > _FRAME_BYTES:
            yield bytes(buffer[:_FRAME_BYTES])
            del buffer[:_FRAME_BYTES]
    if buffer:
        yield bytes(buffer)


async def _send_text(decoder: codecs.IncrementalDecoder, data: bytes, *, final: bool = False) -> None:
    for start in range(0, max(1, len(data)), _FRAME_BYTES):
        end = start + _FRAME_BYTES
        text = decoder.decode(data[start:end], final=final and end >= len(data))
        if text:
            await websocket.send(text)
