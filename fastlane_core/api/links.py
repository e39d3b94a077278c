"""Addresses in answers."""

from __future__ import annotations

from urllib.parse import quote

from quart import request

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
        return f"{self.base}/tasks/{quote(task_id, safe='')}/" + (f"?cursor={quote(cursor, safe='')}" if cursor else "")

    def job(self, task_id: str, job_id: str) -> str:
        """A job."""
        return f"{self.task(task_id)}jobs/{quote(job_id, safe='')}/"

    def execution(self, task_id: str, job_id: str, execution_id: str) -> str:
        """An execution."""
        return f"{self.job(task_id, job_id)}executions/{quote(execution_id, safe='')}/"


def request_links(context: ApiContext) -> Links:
    """Links for the answer to the current request."""
    host = context.api.server_name or request.host or f"{context.host}:{context.port}"
    return Links(f"{request.scheme}://{host}")
