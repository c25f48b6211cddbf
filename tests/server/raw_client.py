"""A client on a bare socket, for what no HTTP client would send."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager

GET = b"GET /health HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
BODY = b'{"prompt": "a", "max_new_tokens": 3}'


def post(body: bytes = BODY, headers: bytes = b"") -> bytes:
    return POST + headers + b"Content-Length: %d\r\n\r\n" % len(body) + body


@contextmanager
def connected(port: int, *, receive_buffer: int = 0) -> Iterator[socket.socket]:
    with socket.socket() as connection:
        connection.settimeout(10)
        if receive_buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.connect(("127.0.0.1", port))
        yield connection


def read_to_end(connection: socket.socket) -> bytes:
    """Until the server hangs up."""
    received = b""
    try:
        while data := connection.recv(65536):
            received += data
    except ConnectionResetError:
        pass
    return received


def read_reply(connection: socket.socket) -> tuple[bytes, bytes]:
    """Head and body of a reply that declares its length."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += _receive(connection)
    head, _, body = received.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    while len(body) < length:
        body += _receive(connection)
    return head, body


def _receive(connection: socket.socket) -> bytes:
    data = connection.recv(65536)
    assert data, "the server hung up"
    return data


def exchange(port: int, request: bytes) -> bytes:
    """All that comes back until the server hangs up."""
    with connected(port) as connection:
        connection.sendall(request)
        return read_to_end(connection)


def assert_refused(reply: bytes, status: int = 400) -> str:
    """Returns the message."""
    head, _, body = reply.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    assert lines[0].startswith(b"http/1.1 %d " % status), reply
    for line in (b"connection: close", b"content-type: application/json", b"x-content-type-options: nosniff"):
        assert lines.count(line) == 1, reply
    assert sum(line.startswith(b"x-request-id: ") for line in lines) == 1
    assert b"content-length: %d" % len(body) in lines
    error = json.loads(body)["error"]
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    return str(error["message"])
