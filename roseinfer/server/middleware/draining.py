"""Turns new requests away once the server has been told to stop."""

from __future__ import annotations

from collections.abc import Awaitable

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from roseinfer.server.errors import OVERLOADED, RESTART_SECONDS, error_response
from roseinfer.server.middleware.auth import OPEN_PATHS

ANSWERED_PATHS = OPEN_PATHS | {"/metrics"}


class DrainingMiddleware:
    """Health and metrics are answered to the end. Looks at `app.state.is_draining`."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        is_refused = scope["type"] == "http" and scope["app"].state.is_draining and scope["path"] not in ANSWERED_PATHS
        return (_refusal() if is_refused else self.app)(scope, receive, send)


def _refusal() -> Response:
    headers = {"Retry-After": str(RESTART_SECONDS), "Connection": "close"}
    return error_response(503, "the server is stopping", code=OVERLOADED, headers=headers)
