"""A small HTTP/1.1 client on asyncio that costs the machine little: on two cores the client competes with the server.

While a reply arrives, its bytes are cut into chunks and the time is taken; all else happens when it is complete.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from time import perf_counter
from typing import Any
from urllib.parse import SplitResult, urlsplit

import roseinfer
from roseinfer.core.errors import ConfigError

MAX_HEAD_BYTES = 1 << 16
READ_BYTES = 1 << 16
MAX_SIZE_LINE = 256  # of a chunk, its extensions included
REPLY_SECONDS = 900.0  # until a reply must be complete

_NO_BODY = (204, 304)


class BadResponseError(Exception):
    """What came back is no HTTP/1.1, or ends in the middle."""


class Response:
    """One response, fed in pieces as they come; `pieces` are its body's chunks with their times of arrival.

    A chunk's time is that of its last byte, on the clock of `time.perf_counter`.
    """

    __slots__ = ("_buffer", "_num_left", "_step", "completed_at", "headers", "pieces", "status")

    def __init__(self) -> None:
        self.status = 0  # 0 = the head is not here yet
        self.headers: dict[str, str] = {}  # names in lower case
        self.pieces: list[tuple[float, bytes]] = []
        self.completed_at: float | None = None
        self._buffer = b""
        self._num_left = 0
        self._step = self._take_head

    @property
    def is_complete(self) -> bool:
        return self.completed_at is not None

    @property
    def is_untouched(self) -> bool:
        """Not a byte of it is here."""
        return self.status == 0 and not self._buffer

    @property
    def keeps_alive(self) -> bool:
        return self.headers.get("connection", "").lower() != "close"

    @property
    def body(self) -> bytes:
        return b"".join(piece for _, piece in self.pieces)

    def feed(self, data: bytes, now: float) -> None:
        """Raises BadResponseError."""
        self._buffer = self._buffer + data if self._buffer else data
        while self.completed_at is None and self._step(now):
            pass

    def feed_end(self, now: float) -> None:
        """The connection is closed; raises BadResponseError unless that is how the body ends."""
        if self._step != self._take_until_close:
            raise BadResponseError("the connection was closed before the reply was complete")
        self.completed_at = now

    # -- steps: each takes what is whole off the buffer, and says whether there may be more -----------------

    def _take_head(self, now: float) -> bool:
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            if len(head) > MAX_HEAD_BYTES:
                raise BadResponseError(f"the head of the reply is longer than {MAX_HEAD_BYTES} bytes")
            return False
        self._buffer = rest
        status, self.headers = _parse_head(head)
        if status >= 200:  # others are interim, and the head of the reply follows
            self.status = status
            self._begin_body(now)
        return True

    def _begin_body(self, now: float) -> None:
        length = self.headers.get("content-length")
        if self.status in _NO_BODY or length == "0":
            self.completed_at = now
        elif "chunked" in self.headers.get("transfer-encoding", "").lower():
            self._step = self._take_chunk
        elif length is None:
            self._step = self._take_until_close
        else:
            self._num_left = _parse_number(length, 10)
            self._step = self._take_counted

    def _take_chunk(self, now: float) -> bool:
        buffer = self._buffer
        start = buffer.find(b"\r\n") + 2
        if start == 1:
            if len(buffer) > MAX_SIZE_LINE:
                raise BadResponseError("a chunk of the reply has no size")
            return False
        size = _parse_number(buffer[: start - 2].partition(b";")[0].decode("latin-1"), 16)
        if size == 0:
            self._buffer = buffer[start:]
            self._step = self._take_trailers
            return True
        if len(buffer) < start + size + 2:
            return False
        if buffer[start + size : start + size + 2] != b"\r\n":
            raise BadResponseError("a chunk of the reply is longer than its size")
        self.pieces.append((now, buffer[start : start + size]))
        self._buffer = buffer[start + size + 2 :]
        return True

    def _take_trailers(self, now: float) -> bool:
        line, found, rest = self._buffer.partition(b"\r\n")
        if not found:
            return False
        self._buffer = rest
        if not line:
            self.completed_at = now
        return True

    def _take_counted(self, now: float) -> bool:
        self._take_all(now, self._num_left)
        return False

    def _take_until_close(self, now: float) -> bool:
        self._take_all(now, len(self._buffer))
        return False

    def _take_all(self, now: float, limit: int) -> None:
        piece, self._buffer = self._buffer[:limit], b""
        if piece:
            self.pieces.append((now, piece))
        self._num_left -= len(piece)
        if self._num_left == 0:
            self.completed_at = now


def _parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    status_line, *lines = head.decode("latin-1").split("\r\n")
    version, _, rest = status_line.partition(" ")
    if not version.startswith("HTTP/1.") or not rest[:3].isdecimal():
        raise BadResponseError(f"this is no HTTP reply: {status_line[:60]!r}")
    fields = (line.partition(":") for line in lines)
    return int(rest[:3]), {name.strip().lower(): value.strip() for name, _, value in fields}


def _parse_number(text: str, base: int) -> int:
    try:
        number = int(text, base)
    except ValueError:
        number = -1
    if number < 0:
        raise BadResponseError(f"the reply has the length {text[:60]!r}")
    return number


class Connection(asyncio.BufferedProtocol):
    """A kept-alive connection: one exchange at a time.

    Reads into a buffer of its own; asyncio's streams and plain protocols allocate 256 KiB for every read.
    """

    def __init__(self) -> None:
        self.is_open = False
        self.is_fresh = True
        self._transport: asyncio.Transport | None = None
        self._response = Response()
        self._done: asyncio.Future[None] | None = None
        self._received = memoryview(bytearray(READ_BYTES))

    async def exchange(self, request: bytes) -> Response:
        """Raises OSError or BadResponseError; after that the connection is closed."""
        assert self._transport is not None
        if not self.is_open:  # lost since it was chosen: a transport that is gone reports nothing any more
            raise ConnectionResetError("the server closed the connection without a reply")
        response = self._response = Response()
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            await self._done
        finally:
            self._done = None
            self.is_fresh = False
            if not (response.is_complete and response.keeps_alive):
                self.close()
        return response

    def close(self) -> None:
        self.is_open = False
        if self._transport is not None:
            self._transport.close()

    # -- called by asyncio ----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.is_open = True

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._received

    def buffer_updated(self, nbytes: int) -> None:
        if self._done is None:  # nobody asked for anything
            self.close()
            return
        try:
            self._response.feed(bytes(self._received[:nbytes]), perf_counter())
        except BadResponseError as error:
            self._finish(error)
        if self._response.is_complete:
            self._finish(None)

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open = False
        if self._response.is_untouched:
            self._finish(error or ConnectionResetError("the server closed the connection without a reply"))
            return
        try:
            self._response.feed_end(perf_counter())
        except BadResponseError as incomplete:
            self._finish(incomplete)
        else:
            self._finish(None)

    def _finish(self, error: Exception | None) -> None:
        if self._done is None or self._done.done():
            return
        if error is None:
            self._done.set_result(None)
        else:
            self._done.set_exception(error)


class HttpClient:
    """Requests to one server. `url` may hold a path, which goes before every other; a closing /v1 is left out.

    Raises ConfigError for something that is no http or https address.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        parts = _split_url(url)
        self.host = parts.hostname or ""
        self.is_tls = parts.scheme == "https"
        self.port = parts.port or (443 if self.is_tls else 80)
        self._root = parts.path.rstrip("/").removesuffix("/v1")
        self._common = _common_headers(parts.netloc.rpartition("@")[2], api_key)
        self._idle: list[Connection] = []

    def encode(self, path: str, body: Mapping[str, Any] | None = None) -> bytes:
        """A request's bytes: POST with a JSON body, GET without."""
        if body is None:
            return f"GET {self._root}{path} HTTP/1.1\r\n{self._common}\r\n".encode()
        content = json.dumps(body).encode()
        head = f"POST {self._root}{path} HTTP/1.1\r\n{self._common}Content-Type: application/json\r\n"
        return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content

    async def open(self, num_connections: int) -> None:
        """Makes connections beforehand, so that no request waits for its own."""
        self._idle = [connection for connection in self._idle if connection.is_open]
        self._idle += [await self._connect() for _ in range(num_connections - len(self._idle))]

    async def send(self, request: bytes) -> Response:
        """Raises OSError (also on a time-out) or BadResponseError."""
        connection = self._take_idle() or await self._connect()
        was_fresh = connection.is_fresh
        try:
            response = await self._exchange(connection, request)
        except ConnectionError:
            # A server may close a connection that it has kept for long enough just when the next request comes.
            if was_fresh:
                raise
            connection = await self._connect()
            response = await self._exchange(connection, request)
        if connection.is_open:
            self._idle.append(connection)
        return response

    async def fetch(self, path: str, body: Mapping[str, Any] | None = None) -> tuple[int, Any]:
        """Status and content of a reply that is JSON; of any other the content is its text."""
        response = await self.send(self.encode(path, body))
        return response.status, decode_json(response.body)

    def close(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle = []

    def _take_idle(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        return None

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, self.host, self.port, ssl=self.is_tls or None)
        return connection

    async def _exchange(self, connection: Connection, request: bytes) -> Response:
        try:
            return await asyncio.wait_for(connection.exchange(request), REPLY_SECONDS)
        except asyncio.TimeoutError:
            raise TimeoutError(f"no complete reply within {REPLY_SECONDS:g} seconds") from None


def decode_json(content: bytes) -> Any:
    """What `content` says, or its text where it is no JSON."""
    try:
        return json.loads(content)
    except ValueError:
        return content.decode("utf-8", "replace")


def _split_url(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return parts
    except ValueError:
        pass  # a port that is no number, an address of half a bracket
    raise ConfigError(f"--url must be an address such as http://127.0.0.1:8000, got {url!r}")


def _common_headers(host: str, api_key: str | None) -> str:
    authorization = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
    return f"Host: {host}\r\nUser-Agent: roseinfer-bench/{roseinfer.__version__}\r\nAccept: */*\r\n{authorization}"
