"""uvicorn's fast HTTP protocol (httptools, around Node's parser) with the bounds that the parser leaves to others."""

from __future__ import annotations

import asyncio
from typing import Any

from httptools import HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from roseinfer.server.errors import error_response
from roseinfer.server.middleware.head_limit import MAX_HEAD_BYTES
from roseinfer.server.middleware.request_id import new_request_id


class BoundedHttpProtocol(HttpToolsProtocol):
    """Ends connections that send much and say nothing, and refuses heads that are ambiguous.

    Whatever is neither a whole head nor body counts: heads and trailers that drip in, chunk extensions, blank lines.
    A head that arrives in one piece is bounded by `HeadLimitMiddleware`, which can answer it.
    """

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self.parser = _Parser(self)
        self._num_pending_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_HeadHolder(transport, self.loop))  # type: ignore[arg-type]

    def data_received(self, data: bytes) -> None:
        self._num_pending_bytes += len(data)
        super().data_received(data)
        if self._num_pending_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(f"the request's head is larger than {MAX_HEAD_BYTES} bytes")

    def on_headers_complete(self) -> None:
        _check_head(self.parser, self.headers)
        if not self.parser.should_upgrade():
            self._num_pending_bytes = 0
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._num_pending_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            self._num_pending_bytes = 0
            super().on_message_complete()

    def head_without_upgrade(self) -> bytes:
        """The last head as it would be without its offer."""
        start = self.parser.get_method(), self.url, self.parser.get_http_version().encode()
        headers = [b"%s: %s\r\n" % header for header in self.headers if header[0] != b"upgrade"]
        return b"%s %s HTTP/%s\r\n%s\r\n" % (*start, b"".join(headers))

    def send_400_response(self, msg: str) -> None:
        """In the shape of every error; behind a reply that has begun there is nothing left but to hang up."""
        if not self._is_replying():
            body = bytes(error_response(400, msg).body)
            headers = {
                "connection": "close",
                "content-type": "application/json",
                "content-length": len(body),
                "x-request-id": new_request_id(),
            }
            lines = ["HTTP/1.1 400 Bad Request", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
            self.transport.write("\r\n".join(lines).encode() + body)
        self.transport.close()

    def _is_replying(self) -> bool:
        is_started = self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete
        return is_started or bool(self.pipeline)


class _Parser(HttpRequestParser):
    """Reads a request that offers to upgrade (every one of Java's HTTP client does) like any other.

    httptools stops behind the head of such a request. What follows is read as if there had been no offer.
    """

    def __init__(self, protocol: BoundedHttpProtocol) -> None:
        super().__init__(protocol)
        self._protocol = protocol

    def feed_data(self, data: Any) -> None:
        rest = memoryview(data)
        while True:
            try:
                super().feed_data(rest)
                return
            except HttpParserUpgrade as offer:
                rest = rest[offer.args[0] :]
                super().feed_data(self._protocol.head_without_upgrade())


class _HeadHolder:
    """A transport that keeps a reply's head back for its first piece of body, if that follows at once.

    uvicorn writes them one after the other: two packets and two system calls, here and with the caller.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head = b""

    def write(self, data: bytes) -> None:
        if self._head:
            data, self._head = self._head + data, b""
        elif data.startswith(b"HTTP/1.1 "):
            self._head = data
            self._loop.call_soon(self._flush)
            return
        self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._head:
            self._transport.write(self._head)
            self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def _check_head(parser: HttpRequestParser, headers: list[tuple[bytes, bytes]]) -> None:
    """Raises ValueError, which stops the parser; uvicorn answers with 400."""
    version = parser.get_http_version()
    if version not in ("1.0", "1.1") or parser.get_method() == b"CONNECT":
        raise ValueError("this is no request for an HTTP server of today")
    if version == "1.1" and sum(name == b"host" for name, _ in headers) != 1:  # RFC 9112, 3.2
        raise ValueError("a request needs exactly one Host header")
