"""Work that ends when its caller hangs up."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

T = TypeVar("T")


class ClientGoneError(Exception):
    """The caller hung up; there is nobody left to answer."""


async def run_while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the caller hangs up; then raises ClientGoneError.

    To be called when the request's body has been read: what comes after it can only be the disconnect. `work` has a
    task of its own, so that a token resumes it alone and not the two dozen frames of routing and middleware.
    """
    worker = asyncio.create_task(work)
    watcher = asyncio.create_task(_cancel_when_gone(receive, worker))
    try:
        return await worker
    except asyncio.CancelledError:
        if watcher.done():
            raise ClientGoneError from None
        raise
    finally:
        watcher.cancel()


async def _cancel_when_gone(receive: Receive, worker: asyncio.Task[T]) -> None:
    """At once: who waits for the caller to read is let go by the same event, and would go on for nobody."""
    try:
        while (await receive())["type"] != "http.disconnect":
            pass
    finally:
        worker.cancel()
