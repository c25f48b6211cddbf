"""Replies that need no app: they are written before there is a request, or where there will never be one."""

from __future__ import annotations

import http

from roseinfer.server.errors import error_response
from roseinfer.server.middleware.request_id import new_request_id
from roseinfer.server.middleware.security_headers import HEADERS, POLICY


def refusal(status: int, message: str, *, code: str | None = None, retry_after: int | None = None) -> bytes:
    """A whole reply in the shape of every error, behind which the connection is closed."""
    reply = error_response(status, message, code=code)
    headers = [
        *reply.raw_headers,
        (b"connection", b"close"),
        (b"x-request-id", new_request_id().encode()),
        *HEADERS,
        POLICY,
    ]
    if retry_after is not None:
        headers.append((b"retry-after", b"%d" % retry_after))
    start = f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\n".encode()
    return start + b"".join([b"%s: %s\r\n" % header for header in headers]) + b"\r\n" + bytes(reply.body)
