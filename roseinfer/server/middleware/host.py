"""Answers only to names that are its own: no page may reach a server at home by a name that it made up for it.

(DNS rebinding: a page's own host name is given the address 127.0.0.1, and the browser takes the server for the page's.)
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from functools import lru_cache

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from roseinfer.server.errors import error_response
from roseinfer.server.host_names import HostNames
from roseinfer.server.middleware.auth import OPEN_PATHS

MAX_SHOWN = 100  # characters of a name that is refused


class HostCheck:
    """Whether a request's host is one of `allowed_hosts`, see `host_names.py:HostNames`."""

    def __init__(self, allowed_hosts: Sequence[str]) -> None:
        names = HostNames(allowed_hosts)
        self._is_allowed = lru_cache(256)(lambda host: str(host, "latin-1") in names)

    def __call__(self, scope: Scope) -> bool:
        return self._is_allowed(_host_in(scope))


class HostMiddleware:
    """Health checks are answered under any name: they tell nothing, and who makes them often knows the address only."""

    def __init__(self, app: ASGIApp, check: HostCheck) -> None:
        self.app = app
        self._check = check

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        is_checked = scope["type"] == "http" and scope["path"] not in OPEN_PATHS
        if is_checked and not self._check(scope):
            return _refusal(_host_in(scope))(scope, receive, send)
        return self.app(scope, receive, send)


def _host_in(scope: Scope) -> bytes:
    for name, value in scope["headers"]:
        if name == b"host":
            return bytes(value)
    return b""


def _refusal(host: bytes) -> Response:
    shown = str(host[:MAX_SHOWN], "latin-1")
    message = f"this server does not answer to the host {shown!r}; --allowed-hosts says to which it does"
    return error_response(403, message, code="host_not_allowed")
