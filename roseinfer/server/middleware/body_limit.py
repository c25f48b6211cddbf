"""Reads a request's body before anything looks at it, up to a size and within a time."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from roseinfer.core.limits import BODY_BYTES
from roseinfer.server.errors import error_response
from roseinfer.server.interruptible import Interruptible

MAX_BODY_BYTES = BODY_BYTES.most
BODY_SECONDS = 30.0
CLOSE = {"Connection": "close"}  # the rest of the body is not waited for


class BodyTooLargeError(Exception):
    pass


class BodyTooSlowError(Exception):
    pass


class DisconnectedError(Exception):
    pass


class BodyLimitMiddleware:
    def __init__(self, app: ASGIApp, max_bytes: int = MAX_BODY_BYTES, seconds: float = BODY_SECONDS) -> None:
        self.app = app
        self._max_bytes = max_bytes
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            body = await self._read_in_time(scope, receive)
        except DisconnectedError:
            return
        except BodyTooLargeError:
            refusal = error_response(413, f"the body is larger than {self._max_bytes} bytes", headers=CLOSE)
        except BodyTooSlowError:
            refusal = error_response(408, f"the body did not arrive within {self._seconds:g} seconds", headers=CLOSE)
        else:
            await self.app(scope, _replay(body, receive), send)
            return
        await refusal(scope, receive, send)

    async def _read_in_time(self, scope: Scope, receive: Receive) -> bytes:
        with Interruptible(BodyTooSlowError()) as block:
            deadline = asyncio.get_running_loop().call_later(self._seconds, block.interrupt)
            try:
                return await self._read(scope, receive)
            finally:
                deadline.cancel()

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        if _declared_bytes(scope) > self._max_bytes:
            raise BodyTooLargeError
        chunks: list[bytes] = []
        num_bytes = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise DisconnectedError
            chunks.append(message.get("body", b""))
            num_bytes += len(chunks[-1])
            if num_bytes > self._max_bytes:
                raise BodyTooLargeError
            if not message.get("more_body", False):
                return b"".join(chunks)


def _declared_bytes(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value[:20]) if value.isdigit() else 0
    return 0


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body as one message; behind it whatever the web server has to say, which is the disconnect."""
    is_read = False

    async def replayed() -> Message:
        nonlocal is_read
        if is_read:
            return await receive()
        is_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed
