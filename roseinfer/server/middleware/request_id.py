"""Gives every reply an `X-Request-Id`: the caller's own if it is harmless, otherwise a new one."""

from __future__ import annotations

import random
import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = b"x-request-id"
_random = random.Random()
_HARMLESS = re.compile(rb"[A-Za-z0-9._-]{1,128}")


class RequestIdMiddleware:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = request_id_of(scope)
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (HEADER, request_id.encode())]
            await send(message)

        await self.app(scope, receive, send_with_id)


def request_id_of(scope: Scope) -> str:
    """What goes into logs and replies must not be able to forge either."""
    for name, value in scope["headers"]:
        if name == HEADER:
            return str(value, "ascii") if _HARMLESS.fullmatch(value) else new_request_id()
    return new_request_id()


def new_request_id() -> str:
    """Unlike any other; 128 bits, which are no secret."""
    return f"{_random.getrandbits(128):032x}"
