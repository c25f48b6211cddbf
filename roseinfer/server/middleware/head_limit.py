"""Refuses request heads that are too large: the web server bounds only those that arrive in several pieces."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from roseinfer.core.limits import HEAD_BYTES
from roseinfer.server.errors import error_response

MAX_HEAD_BYTES = HEAD_BYTES.most


class HeadLimitMiddleware:
    def __init__(self, app: ASGIApp, max_bytes: int = MAX_HEAD_BYTES) -> None:
        self.app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _head_bytes(scope) <= self._max_bytes:
            await self.app(scope, receive, send)
            return
        refusal = error_response(431, f"the request's head is larger than {self._max_bytes} bytes")
        await refusal(scope, receive, send)


def _head_bytes(scope: Scope) -> int:
    headers = sum(len(name) + len(value) for name, value in scope["headers"])
    return headers + len(scope["path"]) + len(scope["query_string"])
