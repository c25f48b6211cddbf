"""Work that ends when its caller hangs up."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from roseinfer.generation import Generation
from roseinfer.inference_engine import InferenceEngine

T = TypeVar("T")


class ClientGoneError(Exception):
    """The caller hung up; there is nobody left to answer."""


async def run_while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the caller hangs up; then raises ClientGoneError.

    To be called when the request's body has been read: what comes after it can only be the disconnect. `work` has a
    task of its own, so that a token resumes it alone and not the two dozen frames of routing and middleware.
    """
    worker = asyncio.create_task(work)
    watcher = asyncio.create_task(_disconnected(receive))
    watcher.add_done_callback(lambda _: worker.cancel())
    try:
        return await worker
    except asyncio.CancelledError:
        if watcher.done():
            raise ClientGoneError from None
        raise
    finally:
        watcher.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class TextStream(Response):
    """The completion, piece by piece as it comes. A failure cuts the connection: no broken reply looks whole.

    The headers wait for the first piece, so that what goes wrong before it still has a status of its own.
    """

    media_type = "text/plain"

    def __init__(self, engine: InferenceEngine, generation: Generation) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._generation = generation
        self._pieces = engine.astream(generation)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._pieces):
            with suppress(ClientGoneError):
                await run_while_connected(receive, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        piece = await anext(self._pieces, None)
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        while piece is not None and not self._generation.is_finished:
            await send({"type": "http.response.body", "body": piece.encode(), "more_body": True})
            piece = await anext(self._pieces, None)
        await send({"type": "http.response.body", "body": (piece or "").encode(), "more_body": False})
