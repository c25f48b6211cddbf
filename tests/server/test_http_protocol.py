"""What the web server makes of bytes that are hardly HTTP, on a bare socket."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import Mock

import pytest

from roseinfer.server.http_protocol import _HeadHolder
from roseinfer.server.middleware.body_limit import MAX_BODY_BYTES
from roseinfer.server.middleware.head_limit import MAX_HEAD_BYTES
from tests.fake_model import recite
from tests.server.live import LiveServer, StartServer

GET = b"GET /health HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
BODY = b'{"prompt": "a", "max_new_tokens": 3}'


@contextmanager
def connected(server: LiveServer) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        yield connection


def read_to_end(connection: socket.socket) -> bytes:
    """Until the server hangs up."""
    received = b""
    try:
        while data := connection.recv(65536):
            received += data
    except ConnectionResetError:  # it did not read all that was sent
        pass
    return received


def read_reply(connection: socket.socket) -> tuple[bytes, bytes]:
    """Head and body of a reply that declares its length."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(65536)
    head, _, body = received.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    while len(body) < length:
        body += connection.recv(65536)
    return head, body


def exchange(server: LiveServer, request: bytes) -> bytes:
    with connected(server) as connection:
        connection.sendall(request)
        return read_to_end(connection)


def assert_refused(reply: bytes) -> str:
    head, _, body = reply.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"\r\nconnection: close" in head
    assert b"\r\nx-request-id: " in head
    error = json.loads(body)["error"]
    assert error["type"] == "invalid_request_error"
    return str(error["message"])


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64,  # TLS
        b"hello\r\n\r\n",
        b"BREW /health HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /health\r\n\r\n",
        b"GET /health HTTP/9.9\r\nHost: x\r\n\r\n",
        b"GET /h\xc3\xa4lth HTTP/1.1\r\nHost: x\r\n\r\n",
        GET + b"Bad Name: 1\r\n\r\n",
        GET + b"Bad: \x00\r\n\r\n",
        GET + b" folded\r\n\r\n",
        POST + b"Content-Length: -1\r\n\r\n",
        POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
        POST + b"Content-Length: 36\r\nTransfer-Encoding: chunked\r\n\r\n" + BODY,
        POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        GET + b"Host: y\r\n\r\n",
    ],
)
def test_what_is_no_request_is_refused(server: LiveServer, request_bytes: bytes) -> None:
    reply = exchange(server, request_bytes)
    assert_refused(reply[reply.rindex(b"HTTP/1.1 ") :])


def test_http_1_0_needs_no_host_and_is_closed(server: LiveServer) -> None:
    reply = exchange(server, b"GET /health HTTP/1.0\r\n\r\n")
    assert reply.startswith(b"HTTP/1.1 200 OK\r\n")
    assert reply.endswith(b'{"status":"ok"}')


def drip(connection: socket.socket, part: bytes, num_bytes: int) -> int:
    """Sends `part` over and over, each in a packet of its own. Returns the bytes sent before the server hung up."""
    sent = 0
    try:
        while sent < num_bytes:
            connection.sendall(part)
            sent += len(part)
            time.sleep(0.0002)
    except (ConnectionResetError, BrokenPipeError):
        pass
    return sent


@pytest.mark.parametrize(
    ("start", "part"),
    [
        (b"", b"GET /" + b"x" * 500),
        (GET, b"X-A: " + b"x" * 500 + b"\r\n"),
        (GET + b"X-A: ", b"x" * 500),
        (b"", b"\r\n" * 250),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n5", b";x=" + b"y" * 500),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X-A: " + b"x" * 500 + b"\r\n"),
    ],
    ids=["request line", "headers", "header", "blank lines", "chunk extensions", "trailers"],
)
def test_heads_that_never_end_are_given_up(server: LiveServer, start: bytes, part: bytes) -> None:
    with connected(server) as connection:
        connection.sendall(start)
        assert drip(connection, part, 200 * MAX_HEAD_BYTES) < 200 * MAX_HEAD_BYTES
    assert server.client.get("/health").status_code == 200


def test_a_head_that_drips_is_read(server: LiveServer) -> None:
    with connected(server) as connection:
        for byte in POST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY:
            connection.sendall(bytes([byte]))
        head, body = read_reply(connection)
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert json.loads(body) == {"text": "a" + recite("a", 3)}


def test_many_requests_on_one_connection(server: LiveServer) -> None:
    """Far more head bytes than one head may have."""
    with connected(server) as connection:
        for _ in range(10):
            connection.sendall(GET + b"X-A: " + b"x" * (MAX_HEAD_BYTES // 4) + b"\r\n\r\n")
            assert read_reply(connection)[1] == b'{"status":"ok"}'


def test_requests_sent_together_are_answered_in_order(server: LiveServer) -> None:
    request = POST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
    reply = exchange(server, request + GET + b"\r\n" + request + GET + b"Connection: close\r\n\r\n")
    text = json.dumps({"text": "a" + recite("a", 3)}, separators=(",", ":"), ensure_ascii=False).encode()
    assert [reply.count(part) for part in (b"HTTP/1.1 200 OK", text, b'{"status":"ok"}')] == [4, 2, 2]
    assert reply.index(text) < reply.index(b'{"status"') < reply.rindex(text) < reply.rindex(b'{"status"')


def test_an_offer_to_upgrade_is_ignored(server: LiveServer) -> None:
    """Some clients make it with every request."""
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    with connected(server) as connection:
        for _ in range(3):
            connection.sendall(POST + upgrade + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY)
            head, body = read_reply(connection)
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            assert json.loads(body) == {"text": "a" + recite("a", 3)}


def test_many_offers_to_upgrade_in_one_packet(server: LiveServer) -> None:
    upgrade = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
    with connected(server) as connection:
        connection.sendall((GET + upgrade + b"\r\n") * 2000 + GET + b"Connection: close\r\n\r\n")
        assert read_to_end(connection).count(b"HTTP/1.1 200 OK\r\n") == 2001


@pytest.mark.parametrize("stream", [b"false", b"true"])
@pytest.mark.parametrize("num_tokens", [0, 1])
def test_a_short_reply_is_one_packet(server: LiveServer, stream: bytes, num_tokens: int) -> None:
    body = b'{"prompt": "a", "max_new_tokens": %d, "stream": %s}' % (num_tokens, stream)
    with connected(server) as connection:
        connection.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        reply = connection.recv(65536)
    text = recite("a", num_tokens).encode()
    if stream == b"true":
        assert reply.endswith((b"%x\r\n%s\r\n" % (len(text), text) if text else b"") + b"0\r\n\r\n")
    else:
        assert reply.endswith(b'{"text":"a%s"}' % text)


def test_a_head_does_not_wait_for_a_body_that_is_late() -> None:
    written: list[bytes] = []
    loop, transport = asyncio.new_event_loop(), Mock(write=written.append)
    holder = _HeadHolder(transport, loop)
    holder.write(b"HTTP/1.1 200 OK\r\n\r\n")
    assert written == []
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    assert written == [b"HTTP/1.1 200 OK\r\n\r\n"]
    holder.write(b"late")
    assert written[1:] == [b"late"]


def test_a_head_is_not_lost_when_the_connection_is_closed() -> None:
    transport = Mock()
    holder = _HeadHolder(transport, Mock())
    holder.write(b"HTTP/1.1 200 OK\r\n\r\n")
    holder.close()
    assert [name for name, _, _ in transport.mock_calls] == ["write", "close"]


def test_garbage_behind_a_request_does_not_get_into_its_reply(start_server: StartServer) -> None:
    server = start_server()
    server.program.step_seconds = 0.02
    body = b'{"prompt": "a", "max_new_tokens": 400, "stop_on_eos": false, "stream": true}'
    with connected(server) as connection:
        connection.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")
        connection.sendall(b"\x00garbage\r\n\r\n")
        assert b"HTTP/1.1" not in read_to_end(connection)


def test_a_refused_body_is_not_kept(server: LiveServer) -> None:
    with connected(server) as connection:
        connection.sendall(POST + b"Content-Length: %d\r\n\r\n" % (4 * MAX_BODY_BYTES))
        assert read_reply(connection)[0].startswith(b"HTTP/1.1 413 ")
        for _ in range(4 * MAX_BODY_BYTES // 2**20):
            connection.sendall(b"x" * 2**20)
        connection.sendall(GET + b"\r\n")
        assert read_reply(connection)[1] == b'{"status":"ok"}'
