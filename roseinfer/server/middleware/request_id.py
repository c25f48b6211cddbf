"""Gives every reply an `X-Request-Id`: the caller's own if it is harmless, otherwise a new one."""

from __future__ import annotations

import random
import re

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "X-Request-Id"
_random = random.Random()
_HARMLESS = re.compile(r"[A-Za-z0-9._-]{1,128}")


class RequestIdMiddleware:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = request_id_of(Headers(scope=scope))
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        await self.app(scope, receive, send_with_id)


def request_id_of(headers: Headers) -> str:
    """What goes into logs and replies must not be able to forge either."""
    given = headers.get(HEADER, "")
    return given if _HARMLESS.fullmatch(given) else new_request_id()


def new_request_id() -> str:
    """Unlike any other; 128 bits, which are no secret."""
    return f"{_random.getrandbits(128):032x}"
