"""A completion as plain text, while it is generated."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing, suppress

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from roseinfer.core.errors import RoseinferError
from roseinfer.generation import Generation
from roseinfer.inference_engine import InferenceEngine
from roseinfer.server.broken_reply import break_off
from roseinfer.server.deadline import time_limit
from roseinfer.server.disconnect import ClientGoneError, run_while_connected
from roseinfer.server.errors import code_of
from roseinfer.server.middleware.access_log import describe


class TextStream(Response):
    """The completion, piece by piece as it comes. A failure, or the end of the request's time, cuts the connection: no
    broken reply looks whole.

    The headers wait for the first piece, so that what goes wrong before it still has a status of its own.
    """

    media_type = "text/plain"

    def __init__(self, engine: InferenceEngine, generation: Generation, warnings: Sequence[str] | None) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._engine = engine
        self._generation = generation
        self._warnings = warnings
        self._pieces = engine.astream(generation)
        self._is_begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error: str | None = None
        try:
            async with aclosing(self._pieces):
                with suppress(ClientGoneError):
                    await run_while_connected(receive, self._send_in_time(scope, send))
        except RoseinferError as failure:
            error = code_of(failure)
            if not (self._is_begun and break_off(scope)):
                raise
        finally:
            record, name = self._generation.record, self._engine.name
            facts = describe([record], model=name, stream=True, warnings=self._warnings, error=error)
            scope["state"]["access"] = facts

    async def _send_in_time(self, scope: Scope, send: Send) -> None:
        with time_limit(scope):
            await self._send_all(send)

    async def _send_all(self, send: Send) -> None:
        piece = await anext(self._pieces, None)
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        self._is_begun = True
        while piece is not None and not self._generation.is_finished:
            await send({"type": "http.response.body", "body": piece.encode(), "more_body": True})
            piece = await anext(self._pieces, None)
        await send({"type": "http.response.body", "body": (piece or "").encode(), "more_body": False})
