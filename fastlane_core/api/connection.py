"""One HTTP request, between the server and the application."""

from __future__ import annotations

import asyncio
from typing import cast

from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable
from quart.asgi import ASGIHTTPConnection
from quart.typing import ResponseTypes
from quart.utils import cancel_tasks, encode_headers, raise_task_exceptions
from quart.wrappers.response import DataBody

from fastlane_core.api.bodies import BoundedBody
from fastlane_core.coarse_timeout import coarse_timeout


class DirectConnection(ASGIHTTPConnection):
    """Handles a request in the server's own task: Quart's way takes four more, which cost as much as accepting a job.

    The application is asked when the body has come. A client that goes away ends a streamed answer, and does not
    interrupt a handler.
    """

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        request = self._create_request_from_scope(send)
        body = cast("BoundedBody", request.body)
        if not await _has_come(body, receive, request.body_timeout):
            return
        response = await self.app.handle_request(request)
        if body.is_whole and _whole(response) is not None:
            await self._send_in_time(send, response)
            return
        sending = asyncio.ensure_future(self._send_in_time(send, response))
        # Returns when the client has gone away.
        watching = asyncio.ensure_future(self.handle_messages(request, receive))
        try:
            done, _ = await asyncio.wait([sending, watching], return_when=asyncio.FIRST_COMPLETED)
        finally:
            # Also when the server ends and cuts the connection: a stream may go on for ever.
            await cancel_tasks({each for each in (sending, watching) if not each.done()})
        raise_task_exceptions(done)

    async def _send_response(self, send: ASGISendCallable, response: ResponseTypes) -> None:
        data = _whole(response)
        if data is None:
            await super()._send_response(send, response)
            return
        await send(
            {
                "type": "http.response.start",
                "status": response.status_code,
                "headers": encode_headers(response.headers),
                "trailers": False,
            }
        )
        await send({"type": "http.response.body", "body": data, "more_body": False})

    async def _send_in_time(self, send: ASGISendCallable, response: ResponseTypes) -> None:
        timeout = getattr(response, "timeout", ...)
        try:
            with coarse_timeout(self.app.config["RESPONSE_TIMEOUT"] if timeout is ... else timeout):
                await self._send_response(send, response)
        except TimeoutError:
            # As Quart does: the server ends the connection.
            return


def _whole(response: ResponseTypes) -> bytes | None:
    """What is to be sent, if all of it is there."""
    body = response.response
    return body.data[body.begin : body.end] if isinstance(body, DataBody) else None


async def _has_come(body: BoundedBody, receive: ASGIReceiveCallable, seconds: float | None) -> bool:
    """Take the body in, or as much of it as is read; False if the client went away before its end."""
    try:
        with coarse_timeout(seconds):
            while not body.is_complete:
                message = await receive()
                if message["type"] != "http.request":
                    return False
                body.append(message.get("body", b""))
                if not message.get("more_body", False):
                    body.is_whole = True
                    body.set_complete()
    except TimeoutError:
        body.give_up()
    return True
