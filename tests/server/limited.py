"""A live server whose limits are a test's own."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from roseinfer.inference_engine import InferenceEngine
from roseinfer.server.app import create_app
from roseinfer.server.http_limits import MAX_CONNECTIONS, HttpLimits
from roseinfer.server.http_server import HttpServer, make_server
from roseinfer.server.runner import bind
from tests.fake_model import RecitingProgram, fake_engine


@dataclass
class LimitedServer:
    port: int
    engine: InferenceEngine
    program: RecitingProgram
    server: HttpServer

    @property
    def num_connections(self) -> int:
        return len(self.server.server_state.connections)

    @property
    def num_live(self) -> int:
        stats = self.engine.client.stats()
        return stats.num_running + stats.num_waiting


@contextlib.contextmanager
def limited(
    *,
    step_seconds: float = 0.0,
    max_connections: int = MAX_CONNECTIONS,
    drain_timeout: float = 30.0,
    max_running: int = 64,
    max_queue: int = 256,
    app: dict[str, Any] | None = None,
    **limits: Any,
) -> Iterator[LimitedServer]:
    """`limits` are those of `HttpLimits`, `app` what `create_app` gets."""
    program, ready = RecitingProgram(), threading.Event()
    program.step_seconds = step_seconds
    with (
        fake_engine(program, max_running=max_running, max_queue=max_queue) as engine,
        bind("127.0.0.1", 0) as listener,
    ):
        server = make_server(
            create_app(engine, **(app or {})),
            "error",
            ready.set,
            max_connections=max_connections,
            drain_timeout=drain_timeout,
            limits=HttpLimits(**limits),
        )
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            assert ready.wait(30)
            yield LimitedServer(listener.getsockname()[1], engine, program, server)
        finally:
            program.step_seconds = 0.0
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


def eventually(condition: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)
