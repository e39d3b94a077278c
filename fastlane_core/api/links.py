"""Addresses in answers."""

from __future__ import annotations

from functools import lru_cache
from urllib.parse import quote

from quart.globals import request_ctx

from fastlane_core.api.context import ApiContext


class Links:
    """Absolute addresses, by the host that the settings name, else by the one that the request came to."""

    def __init__(self, base: str) -> None:
        self.base = base

    def tasks(self, page: int) -> str:
        """A page of the list of tasks."""
        return f"{self.base}/tasks/?page={page}"

    def search(self, query: str, page: int) -> str:
        """A page of a search."""
        return f"{self.base}/search/?query={quote(query, safe='')}&page={page}"

    def task(self, task_id: str, cursor: str | None = None) -> str:
        """A task, or more of its jobs."""
        return f"{self.base}/tasks/{_quoted(task_id)}/" + (f"?cursor={quote(cursor, safe='')}" if cursor else "")

    def job(self, task_id: str, job_id: str) -> str:
        """A job; its id is a UUID, which needs no quoting."""
        return f"{self.task(task_id)}jobs/{job_id}/"

    def execution(self, task_id: str, job_id: str, execution_id: str) -> str:
        """An execution."""
        return f"{self.job(task_id, job_id)}executions/{execution_id}/"


def request_links(context: ApiContext) -> Links:
    """Links for the answer to the current request."""
    request = request_ctx.request
    host = context.api.server_name or request.host or f"{context.host}:{context.port}"
    return Links(f"{request.scheme}://{host}")


@lru_cache(maxsize=1_024)
def _quoted(task_id: str) -> str:
    return quote(task_id, safe="")
