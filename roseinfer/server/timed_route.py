"""A route whose requests have a limited time."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from roseinfer.server.deadline import set_deadline, time_limit
from roseinfer.server.json_body import JSONBodyRoute


class TimedRoute(JSONBodyRoute):
    """The limit holds for all that is done until there is a response; one that streams goes on under the same."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_in_time(request: Request) -> Response:
            set_deadline(request)
            with time_limit(request.scope):
                return await handle(request)

        return handle_in_time
