"""Reads a request's body before anything looks at it, up to a size and within a time."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from roseinfer.core.limits import BODY_BYTES
from roseinfer.server.errors import OVERLOADED, error_response
from roseinfer.server.interruptible import Interruptible

MAX_BODY_BYTES = BODY_BYTES.most
BODY_SECONDS = 30.0
# Of all bodies together; what is up to MAX_UNCOUNTED_BYTES long always has room.
MAX_HELD_BYTES = 256 * 2**20
MAX_UNCOUNTED_BYTES = 64 * 1024
CLOSE = {"Connection": "close"}  # the rest of the body is not waited for


class BodyTooLargeError(Exception):
    pass


class BodyTooSlowError(Exception):
    pass


class DisconnectedError(Exception):
    pass


class TooManyBodiesError(Exception):
    pass


class HeldBytes:
    """What one request holds of the room for bodies; inside its block only, however the block ends."""

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self._num_bytes = 0

    def __enter__(self) -> HeldBytes:
        return self

    def __exit__(self, *_: object) -> None:
        self._budget.num_bytes -= self._num_bytes

    def grow(self, num_bytes: int) -> None:
        """To so many bytes of a body. Raises TooManyBodiesError."""
        if num_bytes <= MAX_UNCOUNTED_BYTES:
            return
        more = num_bytes - self._num_bytes
        if self._budget.num_bytes + more > self._budget.max_bytes:
            raise TooManyBodiesError
        self._budget.num_bytes += more
        self._num_bytes = num_bytes


class BodyBudget:
    """The room for the bodies of all requests: a body takes it as it comes, and until its request is over."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0


class BodyLimitMiddleware:
    def __init__(
        self,
        app: ASGIApp,
        max_bytes: int = MAX_BODY_BYTES,
        seconds: float = BODY_SECONDS,
        max_held_bytes: int = MAX_HELD_BYTES,
    ) -> None:
        self.app = app
        self.budget = BodyBudget(max_held_bytes)
        self._max_bytes = max_bytes
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        with HeldBytes(self.budget) as held:
            await self._serve(scope, receive, send, held)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, held: HeldBytes) -> None:
        try:
            body = await self._read_in_time(scope, receive, held)
        except DisconnectedError:
            return
        except BodyTooLargeError:
            refusal = error_response(413, f"the body is larger than {self._max_bytes} bytes", headers=CLOSE)
        except BodyTooSlowError:
            refusal = error_response(408, f"the body did not arrive within {self._seconds:g} seconds", headers=CLOSE)
        except TooManyBodiesError:
            message = f"the bodies of other requests take up the {self.budget.max_bytes} bytes that there are for them"
            refusal = error_response(503, message, code=OVERLOADED, headers={**CLOSE, "Retry-After": "1"})
        else:
            await self.app(scope, _replay(body, receive), send)
            return
        await refusal(scope, receive, send)

    async def _read_in_time(self, scope: Scope, receive: Receive, held: HeldBytes) -> bytes:
        with Interruptible(BodyTooSlowError()) as block:
            deadline = asyncio.get_running_loop().call_later(self._seconds, block.interrupt)
            try:
                return await self._read(scope, receive, held)
            finally:
                deadline.cancel()

    async def _read(self, scope: Scope, receive: Receive, held: HeldBytes) -> bytes:
        if _declared_bytes(scope) > self._max_bytes:
            raise BodyTooLargeError
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise DisconnectedError
            body += message.get("body", b"")
            if len(body) > self._max_bytes:
                raise BodyTooLargeError
            held.grow(len(body))
            if not message.get("more_body", False):
                return bytes(body)


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
