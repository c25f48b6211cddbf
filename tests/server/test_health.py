"""Live, ready, or neither, and why."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from roseinfer.server import create_app
from roseinfer.server.http_server import make_server
from roseinfer.server.routes import health
from tests.fake_model import fake_engine
from tests.server.live import LiveServer, StartServer, assert_error

PATHS = ["/health", "/health/live", "/health/ready"]


def get(app: FastAPI, path: str) -> httpx.Response:
    async def get() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.get(path)

    return asyncio.run(get())


@pytest.mark.parametrize("path", PATHS)
def test_a_server_that_serves(server: LiveServer, path: str) -> None:
    reply = server.client.get(path)
    assert (reply.status_code, reply.json()) == (200, {"status": "ok"})
    head = server.client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == reply.headers["content-length"]


def test_a_dead_engine_is_live_but_not_ready(start_server: StartServer) -> None:
    server = start_server()
    server.engine.client.close()
    assert "closed" in assert_error(server.client.get("/health/ready"), 503)
    assert server.client.head("/health/ready").status_code == 503
    assert server.client.get("/health/live").status_code == 200


def test_a_full_queue_is_not_ready(start_server: StartServer) -> None:
    server = start_server(max_running=1, max_queue=0)
    server.program.step_seconds = 0.01
    body = {"prompt": "a", "max_new_tokens": 400, "stop_on_eos": False, "stream": True}
    with server.client.stream("POST", "/generate", json=body) as reply:
        pieces = reply.iter_text()  # held, because dropping it would hang up
        next(pieces)
        refusal = server.client.get("/health/ready")
        assert "1 requests" in assert_error(refusal, 503, code="server_is_overloaded")
        assert int(refusal.headers["retry-after"]) >= 1
        assert server.client.get("/health").status_code == 200


def test_a_server_that_was_told_to_stop_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    handled: list[Any] = []
    monkeypatch.setattr(signal, "signal", lambda number, _: handled.append(number))
    with fake_engine() as engine:
        app = create_app(engine)
        assert get(app, "/health/ready").status_code == 200
        make_server(app, "error", lambda: None).handle_exit(signal.SIGTERM, None)
        assert handled
        assert "stopping" in assert_error(get(app, "/health/ready"), 503, code="server_is_overloaded")
        assert get(app, "/health/live").status_code == 200


def test_they_are_documented() -> None:
    app = FastAPI()
    app.include_router(health.router)
    paths = app.openapi()["paths"]
    assert {path: sorted(paths[path]) for path in PATHS} == {path: ["get"] for path in PATHS}
    assert "503" in paths["/health/ready"]["get"]["responses"]


@pytest.mark.parametrize("path", PATHS)
def test_they_need_no_key(start_server: StartServer, path: str) -> None:
    assert start_server(api_keys=["sesame"]).client.get(path).status_code == 200
