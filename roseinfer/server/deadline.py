"""A request's end, whether it is finished by then or not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

from starlette.requests import Request
from starlette.types import Scope

from roseinfer.server.dependencies import request_timeout_of
from roseinfer.server.errors import RequestTimeoutError
from roseinfer.server.interruptible import Interruptible


@dataclass(frozen=True, slots=True)
class Deadline:
    """`at` is a time of the event loop, `seconds` what the request was given when it arrived."""

    at: float
    seconds: float

    @contextmanager
    def enforced(self) -> Iterator[None]:
        """Raises RequestTimeoutError out of the block, where the task waits in it, when the time is up."""
        with Interruptible(RequestTimeoutError(self.seconds)) as block:
            timer = asyncio.get_running_loop().call_at(self.at, block.interrupt)
            try:
                yield
            finally:
                timer.cancel()


def set_deadline(request: Request) -> None:
    """From now on, where the server has a limit; `time_limit` finds it."""
    if seconds := request_timeout_of(request):
        at = asyncio.get_running_loop().time() + seconds
        request.scope["state"]["deadline"] = Deadline(at, seconds)


def time_limit(scope: Scope) -> AbstractContextManager[None]:
    """Around what the current task does for the request, a part of it at a time."""
    deadline: Deadline | None = scope.get("state", {}).get("deadline")
    return nullcontext() if deadline is None else deadline.enforced()
