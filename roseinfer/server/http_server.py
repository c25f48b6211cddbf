"""The web server around the app: uvicorn with our protocol, our limits and our way to stop."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import signal
import socket
import time
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from roseinfer.server.http_limits import MAX_CONNECTIONS, HttpLimits, SharedState
from roseinfer.server.http_protocol import BoundedHttpProtocol
from roseinfer.server.http_transport import SEND_BUFFER_BYTES
from roseinfer.server.open_files import make_room_for

logger = logging.getLogger("roseinfer")

DRAIN_SECONDS = 30.0
BACKLOG = 2048
END_SECONDS = 1.0  # for replies to say that the server stops
LAST_SECONDS = 0.5  # for callers who connected just before the end
TICK_SECONDS = 0.05


def make_server(
    app: FastAPI,
    log_level: str,
    on_ready: Callable[[], None],
    *,
    max_connections: int = MAX_CONNECTIONS,
    drain_timeout: float = DRAIN_SECONDS,
    limits: HttpLimits | None = None,
) -> HttpServer:
    """uvicorn with our limits; its `run` takes the sockets to serve.

    Args:
        max_connections: more are refused with 503; fewer, with a warning, where the limit on open files asks for it.
        drain_timeout: seconds that running requests have to finish once the server is told to stop.
        limits: of connections, beside their number.
    """
    limits = dataclasses.replace(limits or HttpLimits(), max_connections=make_room_for(max_connections))
    if limits.max_connections < max_connections:
        logger.warning("at most %d connections: the limit on open files allows no more", limits.max_connections)
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
        timeout_graceful_shutdown=max(1, math.ceil(drain_timeout)),
        timeout_keep_alive=limits.keep_alive_seconds,
    )
    return HttpServer(settings, app, on_ready, limits, drain_timeout)


class HttpServer(uvicorn.Server):
    """Told to stop, it goes on listening, answers with 503 and lets running requests finish; see `handle_exit`."""

    server_state: SharedState

    def __init__(
        self,
        settings: uvicorn.Config,
        app: FastAPI,
        on_ready: Callable[[], None],
        limits: HttpLimits,
        drain_timeout: float,
    ) -> None:
        super().__init__(settings)
        self.server_state = SharedState(limits, app.state.gate)
        self._app = app
        self._on_ready = on_ready
        self._drain_timeout = drain_timeout
        self._stopped_at = math.inf  # on `time.monotonic`
        self._drain_until = math.inf

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        for listener in sockets or ():  # what they accept inherits it
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        await super().startup(sockets)
        self._sweeper = asyncio.create_task(self._sweep())
        self._on_ready()

    def handle_exit(self, sig: int, frame: object) -> None:
        """The first signal lets requests finish; the next one finds the default handler, which kills."""
        logger.info("stopping; running requests have %g seconds, a second signal ends them", self._drain_timeout)
        self._stopped_at = time.monotonic()
        self._drain_until = self._stopped_at + self._drain_timeout
        self._app.state.is_draining = self.server_state.is_draining = True
        for handled in (signal.SIGINT, signal.SIGTERM):
            signal.signal(handled, signal.SIG_DFL)

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or (self.server_state.is_draining and self._has_drained())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.state.is_draining = self.server_state.is_draining = True
        if time.monotonic() >= self._drain_until and self._is_busy():
            await self._end_requests()
        await self._answer_the_last()
        await super().shutdown(sockets)
        self._sweeper.cancel()

    def _has_drained(self) -> bool:
        """Whether nothing runs any more, or for too long. Connections may still bring a request to refuse."""
        now, connections = time.monotonic(), self._connections()
        for connection in connections:
            connection.wind_down(now, self._stopped_at)
        is_done = not self._is_busy() and not any(connection.is_kept_alive for connection in connections)
        return is_done or now >= self._drain_until

    async def _end_requests(self) -> None:
        """The engine's end is an error for each request that runs, which its reply tells; what remains is cut off."""
        logger.warning("%d requests did not finish in time", len(self.server_state.tasks))
        asyncio.get_running_loop().run_in_executor(None, self._app.state.engine.client.close)
        deadline = time.monotonic() + END_SECONDS
        while self._is_busy() and time.monotonic() < deadline:
            await asyncio.sleep(TICK_SECONDS)
        for connection in self._connections():
            connection.drop()

    async def _answer_the_last(self) -> None:
        """Refuses what was on its way when the server stopped to listen."""
        for server in self.servers:
            server.close()
        deadline = time.monotonic() + LAST_SECONDS
        while time.monotonic() < deadline and self._expects_requests():
            await asyncio.sleep(TICK_SECONDS)

    def _expects_requests(self) -> bool:
        now = time.monotonic()
        return self._is_busy() or any(connection.is_new(now) for connection in self._connections())

    async def _sweep(self) -> None:
        loop, seconds = asyncio.get_running_loop(), self.server_state.limits.sweep_seconds
        while True:
            await asyncio.sleep(seconds)
            now = loop.time()
            for connection in self._connections():
                _check(connection, now)

    def _is_busy(self) -> bool:
        return bool(self.server_state.tasks) or any(connection.is_busy for connection in self._connections())

    def _connections(self) -> list[BoundedHttpProtocol]:
        return [each for each in self.server_state.connections if isinstance(each, BoundedHttpProtocol)]


def _check(connection: BoundedHttpProtocol, now: float) -> None:
    """What goes wrong with one connection, or with the log of it, leaves the others looked after."""
    try:
        connection.check(now)
    except Exception:
        logger.exception("a connection could not be looked after")
