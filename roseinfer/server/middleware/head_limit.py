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
        message = self._objection(scope) if scope["type"] == "http" else None
        await (self.app if message is None else error_response(431, message))(scope, receive, send)

    def _objection(self, scope: Scope) -> str | None:
        if len(scope["headers"]) > MAX_HEADERS:
            return f"the request's head has more than {MAX_HEADERS} headers"
        if _head_bytes(scope) > self._max_bytes:
            return f"the request's head is larger than {self._max_bytes} bytes"
        return None


def _head_bytes(scope: Scope) -> int:
    headers = sum(len(name) + len(value) + HEADER_OVERHEAD for name, value in scope["headers"])
    return headers + len(scope["path"]) + len(scope["query_string"])
