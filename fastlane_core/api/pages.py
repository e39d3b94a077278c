"""Pages for people: live output in a browser."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib import resources

from quart import Blueprint, Response

blueprint = Blueprint("pages", __name__, url_prefix="/tasks/<task_id>/jobs/<job_id>")


@blueprint.get("/stream/")
async def stream_job(task_id: str, job_id: str) -> Response:
    """The page that shows the output of the job's newest execution as it comes."""
    return _page()


@blueprint.get("/executions/<execution_id>/stream/")
async def stream_execution(task_id: str, job_id: str, execution_id: str) -> Response:
    """The page that shows an execution's output as it comes."""
    return _page()


def _page() -> Response:
    html, policy = _stream_page()
    answer = Response(html, content_type="text/html; charset=utf-8")
    answer.headers["Content-Security-Policy"] = policy
    return answer


@cache
def _stream_page() -> tuple[str, str]:
    """The page, the same for every address, and the policy under which nothing but its own parts runs."""
    html = resources.files("fastlane_core.web").joinpath("stream.html").read_text("utf-8")
    script, style = (_digest(html, tag) for tag in ("script", "style"))
    return html, (
        f"default-src 'none'; script-src '{script}'; style-src '{style}'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _digest(html: str, tag: str) -> str:
    found = re.search(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    if found is None:
        raise ValueError(f"the page has no {tag}")
    return "sha256-" + base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()
