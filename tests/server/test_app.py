"""What surrounds the routes: ids, headers, keys, limits, one shape for every error."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterable
from typing import Any

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

import roseinfer
from roseinfer.server import create_app
from roseinfer.server.middleware.body_limit import MAX_BODY_BYTES, BodyLimitMiddleware
from roseinfer.server.middleware.crash_guard import CrashGuardMiddleware
from tests.fake_model import fake_engine
from tests.server.live import LiveServer, StartServer, assert_error, serving


@pytest.mark.parametrize(("method", "content"), [("GET", b'{"status":"ok"}'), ("HEAD", b"")])
def test_health(server: LiveServer, method: str, content: bytes) -> None:
    reply = server.client.request(method, "/health")
    assert (reply.status_code, reply.content) == (200, content)


def test_health_of_a_dead_engine(start_server: StartServer) -> None:
    server = start_server()
    server.engine.client.close()
    assert "closed" in assert_error(server.client.get("/health"), 503)


def test_the_app_has_our_name_and_version() -> None:
    with fake_engine() as engine:
        app = create_app(engine)
    assert (app.title, app.version) == ("roseinfer", roseinfer.__version__)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/nope", 404),
        ("POST", "/generate/", 404),
        ("GET", "/%00%ff", 404),
        ("GET", "/x/%2e%2e/generate", 404),
        ("GET", "/generate", 405),
        ("PUT", "/generate", 405),
        ("POST", "/health", 405),
        ("DELETE", "/health", 405),
        ("PROPFIND", "/health", 405),
    ],
)
def test_routes_that_are_not_there(server: LiveServer, method: str, path: str, status: int) -> None:
    reply = server.client.request(method, path)
    assert method in assert_error(reply, status)
    assert ("allow" in reply.headers) == (status == 405)


@pytest.mark.parametrize("path", ["/health", "/nope", "/generate"])
def test_headers_of_every_reply(server: LiveServer, path: str) -> None:
    headers = server.client.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert headers["x-request-id"]
    assert "server" not in headers


@pytest.mark.parametrize(
    ("given", "is_kept"),
    [
        ("abc-1.2_Z", True),
        ("x" * 128, True),
        ("x" * 129, False),
        ("a b", False),
        ("", False),
        ("ü", False),
        ("a;b", False),
    ],
)
def test_request_ids(server: LiveServer, given: str, is_kept: bool) -> None:
    replied = server.client.get("/health", headers={b"X-Request-Id": given.encode()}).headers["x-request-id"]
    assert (replied == given) is is_kept
    assert replied.replace("-", "").replace(".", "").replace("_", "").isalnum()


def test_streams_have_an_id_too(server: LiveServer) -> None:
    reply = server.client.post("/generate", json={"prompt": "a", "stream": True}, headers={"X-Request-Id": "mine"})
    assert reply.headers["x-request-id"] == "mine"


# -- keys ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def locked() -> Iterable[LiveServer]:
    with serving(api_keys=["sesame", "schlüssel"]) as live:
        yield live


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "sesame",
        "Bearer",
        "Bearer sesam",
        "Bearer sesamee",
        "Basic sesame",
        "Bearer SESAME",
        "Bearer \xff",
    ],
)
@pytest.mark.parametrize(
    "path", ["/generate", "/nope", "/docs", "/openapi.json", "/health/%2e%2e/generate", "//health"]
)
def test_nothing_without_a_key(locked: LiveServer, authorization: str | None, path: str) -> None:
    headers = {} if authorization is None else {b"Authorization": authorization.encode("latin-1")}
    reply = locked.client.post(path, content=b"{", headers=headers)
    assert_error(reply, 401, code="invalid_api_key")
    assert reply.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("authorization", ["Bearer sesame", "bearer  sesame", "Bearer schlüssel"])
def test_each_key_opens(locked: LiveServer, authorization: str) -> None:
    headers = {b"Authorization": authorization.encode()}
    assert locked.client.post("/generate", json={"prompt": "a"}, headers=headers).status_code == 200
    assert_error(locked.client.get("/nope", headers=headers), 404)


def test_health_needs_no_key(locked: LiveServer) -> None:
    assert locked.client.get("/health").status_code == 200


# -- limits -------------------------------------------------------------------------------------------------


def test_a_declared_body_that_is_too_large_is_not_read(server: LiveServer) -> None:
    head = f"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: {MAX_BODY_BYTES + 1}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(head)
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_a_chunked_body_that_is_too_large(server: LiveServer) -> None:
    chunks = (b" " * 65536 for _ in range(MAX_BODY_BYTES // 65536 + 1))
    assert_error(server.client.post("/generate", content=chunks), 413)


def test_the_largest_body_is_read(server: LiveServer) -> None:
    body = b'{"prompt": "a", "max_new_tokens": 1}'.ljust(MAX_BODY_BYTES)
    reply = server.client.post("/generate", content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code == 200


def test_a_head_that_is_too_large(server: LiveServer) -> None:
    assert_error(server.client.get("/health", headers={"X-Long": "x" * 16_384}), 431)
    assert_error(server.client.get("/health?" + "x" * 16_384), 431)
    assert server.client.get("/health", headers={"X-Long": "x" * 16_000}).status_code == 200


async def _never(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError("the app must not be reached")


def _run_asgi(app: Any, messages: list[Message], *, hangs: bool = False, headers: list[Any] = []) -> list[Message]:  # noqa: B006
    """What the app sends for a POST whose body comes as `messages`, and then nothing (or the end)."""
    sent: list[Message] = []

    async def receive() -> Message:
        if messages:
            return messages.pop(0)
        if hangs:
            await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "headers": headers, "state": {"request_id": "r1"}}
    asyncio.run(app(scope, receive, send))
    return sent


def test_a_body_that_drips_is_given_up() -> None:
    part = {"type": "http.request", "body": b"a", "more_body": True}
    sent = _run_asgi(BodyLimitMiddleware(_never, seconds=0.05), [part], hangs=True)
    assert sent[0]["status"] == 408
    assert b"0.05 seconds" in sent[1]["body"]


def test_a_caller_who_leaves_within_the_body_is_not_answered() -> None:
    part = {"type": "http.request", "body": b"a", "more_body": True}
    assert _run_asgi(BodyLimitMiddleware(_never), [part]) == []


@pytest.mark.parametrize("declared", [b"9" * 5000, b"-1", b"ten", "²".encode()])
def test_a_strange_content_length_is_no_crash(declared: bytes) -> None:
    part = {"type": "http.request", "body": b"a", "more_body": True}
    sent = _run_asgi(BodyLimitMiddleware(_never), [part], headers=[(b"content-length", declared)])
    assert [message.get("status") for message in sent[:1]] == ([413] if declared.startswith(b"9") else [])


# -- crashes ------------------------------------------------------------------------------------------------


def test_a_crash_is_a_500_that_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def crash(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("a secret")

    with caplog.at_level(logging.ERROR):
        sent = _run_asgi(CrashGuardMiddleware(crash), [])
    assert sent[0]["status"] == 500
    assert b"a secret" not in sent[1]["body"]
    assert b"r1" in sent[1]["body"]
    assert "a secret" in caplog.text


def test_a_crash_behind_the_first_byte_is_not_covered_up() -> None:
    async def crash(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError

    with pytest.raises(RuntimeError):
        _run_asgi(CrashGuardMiddleware(crash), [])


def test_a_closed_engine_is_a_500(start_server: StartServer) -> None:
    server = start_server()
    server.engine.close()
    assert_error(server.post(prompt="a"), 500)


def test_the_app_works_without_a_web_server() -> None:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(engine))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post("/generate", json={"prompt": "Hi", "stream": True})

    with fake_engine() as engine:
        assert asyncio.run(ask()).text == engine.generate("Hi")[2:]
