"""Refuses request heads that are too large: the web server bounds only those that arrive in several pieces."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from roseinfer.core.limits import HEAD_BYTES
from roseinfer.server.errors import error_response

MAX_HEAD_BYTES = HEAD_BYTES.most
MAX_HEADERS = 200  # each costs more than its bytes; browsers and proxies send some tens
HEADER_OVERHEAD = 4  # a colon, a space and the line's end


class HeadLimitMiddleware:
    def __init__(self, app: ASGIApp, max_bytes: int = MAX_HEAD_BYTES) -> None:
        self.app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = _objection(scope, self._max_bytes) if scope["type"] == "http" else None
        await (self.app if message is None else error_response(431, message))(scope, receive, send)


def has_small_head(scope: Scope) -> bool:
    """Whether the request is let through, by the limits that a server has unless it is told others."""
    return _objection(scope, MAX_HEAD_BYTES) is None


def _objection(scope: Scope, max_bytes: int) -> str | None:
    if len(scope["headers"]) > MAX_HEADERS:
        return f"the request's head has more than {MAX_HEADERS} headers"
    if _head_bytes(scope) > max_bytes:
        return f"the request's head is larger than {max_bytes} bytes"
    return None


def _head_bytes(scope: Scope) -> int:
    headers = sum(len(name) + len(value) + HEADER_OVERHEAD for name, value in scope["headers"])
    return headers + len(scope["path"]) + len(scope["query_string"])
