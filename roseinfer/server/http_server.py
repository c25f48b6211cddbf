"""The web server around the app: uvicorn with our protocol, our limits and our way to stop."""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from roseinfer.server.http_protocol import BoundedHttpProtocol

logger = logging.getLogger("roseinfer")

DRAIN_SECONDS = 30
KEEP_ALIVE_SECONDS = 75  # longer than clients keep idle connections, or they would race with our closing them
BACKLOG = 2048


def make_server(app: FastAPI, log_level: str, on_ready: Callable[[], None]) -> uvicorn.Server:
    """uvicorn with our limits; its `run` takes the sockets to serve."""

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            on_ready()

        def handle_exit(self, sig: int, frame: object) -> None:
            """The first signal lets requests finish; the next one finds the default handler, which kills."""
            logger.info("stopping; running requests have %d seconds, a second signal ends them", DRAIN_SECONDS)
            self.should_exit = True
            app.state.is_draining = True
            for handled in (signal.SIGINT, signal.SIGTERM):
                signal.signal(handled, signal.SIG_DFL)

    settings = uvicorn.Config(
        app,
        http=BoundedHttpProtocol,
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="info" if log_level == "debug" else "warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )
    return Server(settings)
