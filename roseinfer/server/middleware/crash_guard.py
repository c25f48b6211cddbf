"""Turns an unforeseen exception into a 500 of the usual shape that tells nothing but the request's id."""

from __future__ import annotations

import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from roseinfer.server.errors import error_response

logger = logging.getLogger(__name__)


class CrashGuardMiddleware:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        has_started = False

        async def watched_send(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            await self.app(scope, receive, watched_send)
        except Exception:
            if has_started:
                raise  # the web server cuts the connection: a broken reply must not look whole
            request_id = scope["state"]["request_id"]
            logger.exception("request %s failed", request_id)
            response = error_response(500, f"the server failed to answer request {request_id}")
            await response(scope, receive, send)
