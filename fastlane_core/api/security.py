"""A page in a browser must not use a visitor's Fastlane.

Three ways are closed: requests that a browser marks as coming from another site (Fetch Metadata, `Origin`), reading
answers across origins (CORS, only for the origins that the settings allow), and names that are made to point at
loopback (DNS rebinding; a loopback server takes only names that mean loopback). Programs that are no browsers send
none of these headers and are not affected.
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from urllib.parse import urlsplit

from quart import Quart, Response
from quart.globals import request_ctx, websocket_ctx
from quart.wrappers.base import BaseRequestWebsocket

from fastlane_core.api.answers import Refused
from fastlane_core.api.bodies import header
from fastlane_core.api.context import ApiContext

_ALLOWED_METHODS = "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT"
_ALLOWED_HEADERS = "Authorization, Content-Type, Idempotency-Key, If-Match, If-None-Match, X-Request-ID"
_EXPOSED_HEADERS = "ETag, Fastlane-Exit-Code, Retry-After"
_PREFLIGHT_SECONDS = "600"
#: Headers of every answer, of what a browser might show as a page, and of what no other origin may read; each only
#: where the answer has none of its own.
_MARK = ("X-Content-Type-Options", "nosniff")
_PAGE_MARKS = (
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
)
#: Content types of most answers, which browsers run nothing of and load nothing for.
_NO_PAGES = frozenset({"application/json"})
_SAME_ORIGIN = ("Cross-Origin-Resource-Policy", "same-origin")
#: Methods by which nothing is changed.
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_FOREIGN_SITES = frozenset({"cross-site", "same-site"})
_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


def guard(app: Quart, context: ApiContext) -> None:
    """Put the checks before, and the headers behind, everything that `app` serves."""
    policy = Policy(bind_host=context.host, server_name=context.api.server_name, cors_origins=context.api.cors_origins)

    async def before_request() -> Response | None:
        asked = request_ctx.request
        policy.check(asked, changes=asked.method not in _SAFE_METHODS)
        if asked.method == "OPTIONS" and header(asked, b"access-control-request-method") is not None:
            return Response("", status=200, content_type="text/plain")
        return None

    async def before_websocket() -> None:
        policy.check(websocket_ctx.websocket, changes=True)

    async def after_request(response: Response) -> Response:
        policy.mark(response, request_ctx.request)
        return response

    app.before_request(before_request)
    app.before_websocket(before_websocket)
    app.after_request(after_request)


class Policy:
    """Who may use the API from where."""

    def __init__(self, *, bind_host: str, server_name: str | None, cors_origins: list[str]) -> None:
        self._loopback_only = _is_loopback(bind_host)
        self._names = {name.lower() for name in (bind_host, _host_of(server_name or "")) if name}
        self._server_name = (server_name or "").lower()
        self._any_origin = "*" in cors_origins
        self._origins = {origin.rstrip("/").lower() for origin in cors_origins}
        self._marks = (_MARK,) if self._origins else (_MARK, _SAME_ORIGIN)
        self._page_marks = (*self._marks, *_PAGE_MARKS)

    def check(self, asked: BaseRequestWebsocket, *, changes: bool) -> None:
        """Raises Refused for what another site's page asks for, and for names that are not this server's."""
        host = header(asked, b"host") or ""
        if self._loopback_only and host and not self._is_own_name(_host_of(host)):
            raise Refused(
                f"this server listens on loopback and is not known as {_shown(host)}; "
                "if it should be, set SERVER_NAME to that name"
            )
        origin = header(asked, b"origin")
        if origin is not None:
            if not (self.allows(origin) or self._is_own_origin(origin, host)):
                raise Refused(
                    f"a page of {_shown(origin)} may not use this server; if it should, add it to CORS_ORIGINS"
                )
        elif changes and (header(asked, b"sec-fetch-site") or "").lower() in _FOREIGN_SITES:
            raise Refused("a page of another site may not use this server")

    def allows(self, origin: str) -> bool:
        """Whether the settings let pages of `origin` use this API."""
        return self._any_origin or origin.lower() in self._origins

    def mark(self, response: Response, asked: BaseRequestWebsocket) -> None:
        """Add the headers that tell a browser what it may do with the answer."""
        present = {name.lower() for name, _ in response.headers}
        is_page = response.headers.get("Content-Type") not in _NO_PAGES
        for name, value in self._page_marks if is_page else self._marks:
            if name.lower() not in present:
                response.headers.add(name, value)
        if not self._origins:
            return
        origin = header(asked, b"origin")
        response.vary.add("Origin")
        if origin is not None and self.allows(origin):
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Allow-Methods"] = _ALLOWED_METHODS
            response.headers["Access-Control-Allow-Headers"] = _ALLOWED_HEADERS
            response.headers["Access-Control-Expose-Headers"] = _EXPOSED_HEADERS
            response.headers["Access-Control-Max-Age"] = _PREFLIGHT_SECONDS

    def _is_own_name(self, name: str) -> bool:
        return name in self._names or _is_loopback(name)

    def _is_own_origin(self, origin: str, host: str) -> bool:
        try:
            parts = urlsplit(origin.lower())
            port = parts.port or _DEFAULT_PORTS.get(parts.scheme)
        except ValueError:
            return False
        if parts.scheme not in ("http", "https") or not parts.hostname:
            return False
        # A proxy may have ended TLS, so the scheme that counts is the browser's.
        own = {_with_port(each, parts.scheme) for each in (host, self._server_name) if each}
        return (parts.hostname, port) in own


@lru_cache(maxsize=256)
def _is_loopback(host: str) -> bool:
    name = host.lower().strip("[]")
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _host_of(host: str) -> str:
    """The name in a `Host` header, in lower case, without its port."""
    return re.sub(r":\d*$", "", host.lower()) if not host.endswith("]") else host.lower()


def _with_port(host: str, scheme: str) -> tuple[str, int | None]:
    found = re.fullmatch(r"(.*?)(?::(\d{1,5}))?", host.lower())
    if found is None:
        return host, None
    return found[1].strip("[]"), int(found[2]) if found[2] else _DEFAULT_PORTS[scheme]


def _shown(text: str) -> str:
    return repr(text[:200])
