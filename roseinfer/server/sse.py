"""Server-sent events, as OpenAI's clients read them."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, suppress
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from roseinfer.core.errors import EngineError, RoseinferError
from roseinfer.server.deadline import time_limit
from roseinfer.server.disconnect import ClientGoneError, run_while_connected
from roseinfer.server.errors import code_of, response_of
from roseinfer.server.json_pieces import encode_json

logger = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"


def event(data: bytes) -> bytes:
    """One event; JSON has no line breaks, so that its data is one line."""
    return b"data: " + data + b"\n\n"


def named_event(fields: Mapping[str, Any]) -> bytes:
    """One event that has its `type` for a name."""
    name: str = fields["type"]
    return b"event: " + name.encode() + b"\n" + event(encode_json(fields))


def foreseen(error: Exception) -> RoseinferError:
    """The error itself; for one that was not foreseen one that says nothing of it."""
    return error if isinstance(error, RoseinferError) else EngineError("the server failed to answer this request")


def error_event(error: Exception) -> bytes:
    """The error as its reply would tell it."""
    return event(bytes(response_of(foreseen(error)).body))


class EventStream(Response):
    """Events as they come, each given as bytes that are sent at once, and `end` behind the last one.

    The headers wait for the first event, so that what goes wrong before it still has a status of its own. A failure
    later, or the end of the request's time, is an event that `on_error` makes, and `end` is missing: no broken stream
    looks whole.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        *,
        end: bytes = DONE,
        on_error: Callable[[Exception], bytes] = error_event,
    ) -> None:
        super().__init__(headers={"content-type": "text/event-stream"})
        del self.headers["content-length"]
        self._events = events
        self._end = end
        self._on_error = on_error
        self._is_begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._events):
            with suppress(ClientGoneError):
                await run_while_connected(receive, self._send_all(scope, send))

    async def _send_all(self, scope: Scope, send: Send) -> None:
        end = self._end
        try:
            with time_limit(scope):
                await self._send_events(send)
        except Exception as error:
            if not self._is_begun:
                raise
            end = self._on_error(error)
            await self._events.aclose()  # nothing of it runs on while the caller is told
            _note_failure(scope, error)
        await send({"type": "http.response.body", "body": end, "more_body": False})

    async def _send_events(self, send: Send) -> None:
        data = await anext(self._events, None)
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        self._is_begun = True
        while data is not None:
            await send({"type": "http.response.body", "body": data, "more_body": True})
            data = await anext(self._events, None)


def _note_failure(scope: Scope, error: Exception) -> None:
    """For the logs; what the events themselves ran into is there already."""
    state = scope.get("state", {})
    if not isinstance(error, RoseinferError):
        logger.error("request %s failed within its stream", state.get("request_id"), exc_info=error)
    elif "access" in state:
        state["access"].setdefault("error", code_of(error))
