"""What surrounds the routes: ids, headers, keys, limits, one shape for every error."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import socket
from collections.abc import Iterable
from typing import Any

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

import roseinfer
from roseinfer.server import create_app
from roseinfer.server.middleware.auth import ApiKeys, AuthMiddleware
from roseinfer.server.middleware.body_limit import MAX_BODY_BYTES, BodyLimitMiddleware
from roseinfer.server.middleware.crash_guard import CrashGuardMiddleware
from roseinfer.server.middleware.head_limit import MAX_HEADERS
from tests.fake_model import fake_engine
from tests.server.live import LiveServer, StartServer, assert_error, serving
from tests.server.raw_client import exchange


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
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-frame-options"] == "DENY"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["content-security-policy"].startswith("default-src 'none'; ")
    assert headers["x-request-id"]
    assert not [name for name in headers if name == "server" or name.startswith("access-control-")]
    assert len(set(headers)) == len(headers.raw)


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


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models",
        "/metrics",
        "/",
        "/health/",
        "/health//live",
        "/Health",
        "/HEALTH/LIVE",
        "/health/live/",
        "/health/liver",
        "/health/../v1/models",
        "/health/live/../../v1/models",
        "/health/%2e%2e/v1/models",
        "/health%2f..%2fv1%2fmodels",
        "/health%00",
        "/health;/v1/models",
        "/health\\..\\v1\\models",
        "/%2fhealth",
        "//health",
        "/./health",
        "/v1/models?/health",
        "/v1/models%3f/health",
        "/v1/models%23/health",
        "/v1/models/../../health",
    ],
)
def test_no_path_gets_around_the_key(locked: LiveServer, path: str) -> None:
    reply = exchange(locked.port, b"GET %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % path.encode())
    assert reply.startswith(b"HTTP/1.1 401 "), reply


def test_an_absolute_target_does_not_get_around_the_key(locked: LiveServer) -> None:
    reply = exchange(locked.port, b"GET http://x/v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert reply.startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize("path", ["/docs", "/openapi.json"])
def test_browsers_ask_for_the_key(locked: LiveServer, path: str) -> None:
    refusal = locked.client.get(path)
    assert_error(refusal, 401, code="invalid_api_key")
    challenges = refusal.headers.get_list("www-authenticate")
    assert challenges == ["Bearer", 'Basic realm="roseinfer", charset="UTF-8"']
    for user in ("", "anybody"):
        assert locked.client.get(path, auth=(user, "schlüssel")).status_code == 200
    assert locked.client.get(path, headers={"Authorization": "Bearer sesame"}).status_code == 200


@pytest.mark.parametrize("token", ["!", "c2VzYW1l", "OnNlc2FtZQ", "OnNlc2Ft", "OnNlc2FtZTo=", "//79"])
def test_wrong_passwords(locked: LiveServer, token: str) -> None:
    """No base64, no colon, no padding, "sesam", "sesame:" and bytes."""
    assert_error(locked.client.get("/docs", headers={"Authorization": f"Basic {token}"}), 401, code="invalid_api_key")


@pytest.mark.parametrize(("method", "path"), [("POST", "/generate"), ("GET", "/v1/models"), ("POST", "/docs")])
def test_the_password_is_for_documentation_only(locked: LiveServer, method: str, path: str) -> None:
    """A browser sends it along whoever's page makes it ask."""
    reply = locked.client.request(method, path, auth=("", "sesame"))
    assert_error(reply, 401, code="invalid_api_key")
    assert reply.headers.get_list("www-authenticate") == ["Bearer"]


def tenant_of(api_keys: list[str], path: str = "/v1/models", **headers: str) -> str:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["state"]["tenant"])

    seen: list[str] = []
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "GET", "path": path, "headers": raw, "state": {}}
    asyncio.run(AuthMiddleware(app, ApiKeys(api_keys))(scope, None, None))  # type: ignore[arg-type]
    return seen[0]


def test_callers_are_told_apart_by_their_keys() -> None:
    keys = ["sesame", "schlüssel"]
    tenants = [tenant_of(keys, authorization=f"Bearer {key}") for key in keys]
    assert len(set(tenants)) == 2
    assert all(re.fullmatch("[0-9a-f]{16}", tenant) for tenant in tenants)
    assert tenant_of(keys, x_api_key="sesame") == tenant_of(["sesame"], authorization="bearer sesame") == tenants[0]
    assert tenants[0] not in hashlib.sha256(b"sesame").hexdigest()
    assert tenant_of(keys, "/health") == tenant_of([], authorization="Bearer sesame") == tenant_of([]) == ""


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


def test_a_head_of_too_many_headers(server: LiveServer) -> None:
    own = len(server.client.build_request("GET", "/health").headers)
    headers = [("a", "") for _ in range(MAX_HEADERS - own)]
    assert server.client.get("/health", headers=headers).status_code == 200
    assert_error(server.client.get("/health", headers=[*headers, ("a", "")]), 431)


@pytest.mark.parametrize("path", ["/", "/v1/messages/"])
def test_a_long_path_is_not_repeated(server: LiveServer, path: str) -> None:
    reply = server.client.get(path + "a" * 14_000)
    assert reply.status_code == 404
    assert len(reply.content) < 500


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


def test_a_closed_engine_is_a_503(start_server: StartServer) -> None:
    server = start_server()
    server.engine.close()
    reply = server.post(prompt="a")
    assert_error(reply, 503, code="server_is_overloaded")
    assert int(reply.headers["retry-after"]) > 0


def test_the_app_works_without_a_web_server() -> None:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(engine))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post("/generate", json={"prompt": "Hi", "stream": True})

    with fake_engine() as engine:
        assert asyncio.run(ask()).text == engine.generate("Hi")[2:]
