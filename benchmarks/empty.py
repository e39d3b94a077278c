"""The floor of `benchmarks.submit`: a Quart application with one endpoint that does nothing, served by hypercorn.

python -m benchmarks.empty PORT
"""

from __future__ import annotations

import asyncio
import sys

from hypercorn.asyncio import serve
from hypercorn.config import Config
from quart import Quart, request

app = Quart(__name__)


@app.post("/tasks/<task_id>/")
async def nothing(task_id: str) -> dict[str, str]:
    """Read the JSON body and answer a small JSON object."""
    body = await request.get_json()
    return {"taskId": task_id, "image": body["image"]}


if __name__ == "__main__":
    config = Config()
    config.bind = [f"127.0.0.1:{int(sys.argv[1])}"]
    asyncio.run(serve(app, config))
