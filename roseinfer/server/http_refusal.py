"""Replies that need no app: they are written before there is a request, or where there will never be one."""

from __future__ import annotations

import http
from collections.abc import Sequence

from starlette.responses import Response

from roseinfer.server.errors import error_response
from roseinfer.server.middleware.request_id import HEADER, new_request_id
from roseinfer.server.middleware.security_headers import HEADERS, POLICY, Header

_START_LINES = {int(each): f"HTTP/1.1 {each} {each.phrase}\r\n".encode() for each in http.HTTPStatus}
_SECURITY = b"".join(b"%b: %b\r\n" % header for header in (*HEADERS, POLICY))


def refusal(status: int, message: str, *, code: str | None = None, retry_after: int | None = None) -> bytes:
    """A whole reply in the shape of every error, behind which the connection is closed."""
    advice = {} if retry_after is None else {"Retry-After": str(retry_after)}
    reply = error_response(status, message, code=code, headers=advice)
    return reply_bytes(reply, new_request_id(), [(b"connection", b"close")])


def reply_bytes(response: Response, request_id: str, headers: Sequence[Header]) -> bytes:
    """A reply with what every one has: `headers`, its own, those for browsers and the request's id."""
    lines = [b"%b: %b\r\n" % header for header in (*headers, *response.raw_headers)]
    identity = b"%b: %b\r\n\r\n" % (HEADER, request_id.encode())
    return b"".join([_START_LINES[response.status_code], *lines, _SECURITY, identity, response.body])
