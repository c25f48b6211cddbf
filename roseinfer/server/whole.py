"""Replies that are sent when they are whole."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from roseinfer.server.dependencies import long_work_of, tenant_of
from roseinfer.server.disconnect import ClientGoneError, run_while_connected
from roseinfer.server.json_pieces import encode_json, json_pieces
from roseinfer.server.middleware.access_log import CLIENT_CLOSED_REQUEST
from roseinfer.server.worker import MAX_INLINE_CHARS

JSON = "application/json"


async def json_reply(work: Awaitable[Any]) -> Response:
    """The result of `work` as JSON, unless it is a response already; to a caller who has hung up, anything."""
    try:
        reply = await work
    except ClientGoneError:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return reply if isinstance(reply, Response) else _response(reply)


async def sized_reply(request: Request, size: int, make: Callable[[], Any]) -> Response:
    """What `make` makes, as JSON; `size` is the number of logprobs, or of whatever takes as long to write down.

    A large reply is made and encoded where it holds nobody up, and sent piece by piece, so that no more of it is copied
    at a time than the connection takes. Raises ClientGoneError if the caller hangs up before it is made.
    """
    if size <= MAX_INLINE_CHARS:
        return _response(make())
    work = long_work_of(request).run_reply(size, lambda: json_pieces(make()), tenant_of(request))
    return JSONPieces(await run_while_connected(request.receive, work))


def _response(reply: Any) -> Response:
    return Response(encode_json(reply), media_type=JSON)


class JSONPieces(Response):
    """A body that is there as a whole, in pieces, of which there is one at least. Each is dropped as it is sent."""

    media_type = JSON

    def __init__(self, pieces: Iterable[bytes]) -> None:
        super().__init__()
        self._pieces = deque(pieces)
        self.headers["content-length"] = str(sum(map(len, self._pieces)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for num_left in reversed(range(len(self._pieces))):
            await send({"type": "http.response.body", "body": self._pieces.popleft(), "more_body": num_left > 0})
