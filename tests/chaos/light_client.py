"""A client that burdens the machine as little as Python can, for loads whose server needs the cores more.

Requests are bytes that were made beforehand, and a connection is used again as soon as its reply is whole, also by a
caller who was refused. While a reply arrives its end is all that is looked for; what it says is read afterwards.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from time import perf_counter
from typing import Any

from roseinfer.bench.http_client import BadResponseError, HttpClient, Response
from tests.chaos.client import Stream

READ_BYTES = 1 << 16
HEAD_END = b"\r\n\r\n"
LAST_CHUNK = b"\r\n0\r\n\r\n"
EVENT_START = b"data: "
LAST_EVENT = b"data: [DONE]"


class Answer:
    """What came back for one request, as it came: pieces of a reply with the times at which they were read."""

    __slots__ = ("_on_end", "ended_at", "error", "pieces", "request", "started_at")

    def __init__(self, request: bytes, on_end: Callable[[], None] | None = None) -> None:
        self.request = request
        self.started_at = perf_counter()
        self.ended_at = 0.0  # 0 = it has not
        self.error: str | None = None
        self.pieces: list[tuple[float, bytes]] = []
        self._on_end = on_end

    @property
    def has_ended(self) -> bool:
        return self.ended_at > 0

    def end(self, error: str | None = None) -> None:
        self.ended_at = perf_counter()
        self.error = error
        if self._on_end is not None:
            self._on_end()

    def as_stream(self) -> Stream:
        """Read from its first byte to its last; whatever is not as it should be is the stream's `error`."""
        stream = Stream(self.started_at, ended_at=self.ended_at, error=self.error)
        response = Response()
        try:
            for moment, piece in self.pieces:
                response.feed(piece, moment)
            stream.status, stream.headers = response.status, response.headers
            stream.chunk_times = [moment for moment, _ in response.pieces]
            if self.error is None:
                _read(stream, response)
        except (BadResponseError, ValueError, KeyError, TypeError) as error:
            stream.error = stream.error or repr(error)
        return stream


def _read(stream: Stream, response: Response) -> None:
    """Raises ValueError, KeyError or TypeError for what is no whole answer."""
    if not response.is_complete:
        raise ValueError("the reply goes on behind its end")
    if stream.status != 200:
        raise ValueError(f"status {stream.status}: {response.body.decode('utf-8', 'replace')[:200]}")
    *events, last, rest = response.body.split(b"\n\n")
    if last != LAST_EVENT or rest:
        raise ValueError("the stream ends without [DONE]")
    chunks = [_decode(event) for event in events]
    usages = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    stream.num_tokens = usages[-1]["completion_tokens"] if usages else None
    is_finished = any(choice.get("finish_reason") for chunk in chunks for choice in chunk["choices"])
    if not (stream.num_tokens and is_finished):
        raise ValueError("the stream ends without its usage, or without a reason to")


def _decode(event: bytes) -> dict[str, Any]:
    if not event.startswith(EVENT_START):
        raise ValueError(f"this is no event: {event[:60]!r}")
    chunk: dict[str, Any] = json.loads(event[len(EVENT_START) :])
    if "error" in chunk:
        raise ValueError(f"the server said: {chunk['error']}")
    return chunk


class LightClient:
    """Sends requests to one server. `answers` has one for each of them, in the order in which they were sent."""

    def __init__(self, url: str) -> None:
        server = HttpClient(url)
        self.answers: list[Answer] = []
        self.num_resent = 0  # because the kept connection that they were sent on was lost before anything came back
        self._address = server.host, server.port
        self._buffer = memoryview(bytearray(READ_BYTES))  # of all connections: what is read is taken at once
        self._idle: list[_Connection] = []
        self._connections: set[_Connection] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._num_open = 0
        self._all_ended = asyncio.Event()

    @property
    def num_open(self) -> int:
        """Requests that nobody has answered yet."""
        return self._num_open

    def send(self, request: bytes, on_end: Callable[[], None] | None = None) -> None:
        """Waits for nothing; `on_end` is called when it has been answered."""
        answer = Answer(request, on_end)
        self.answers.append(answer)
        self._num_open += 1
        if self._idle:
            self._idle.pop().send(answer)
        else:
            self._connect(answer)

    async def ask(self, request: bytes) -> None:
        """Until it has been answered."""
        ended = asyncio.Event()
        self.send(request, ended.set)
        await ended.wait()

    async def settle(self, seconds: float) -> None:
        """Waits until all requests have been answered. Those that are not by then end with an error."""
        self._all_ended.clear()
        try:
            if self._num_open:
                await asyncio.wait_for(self._all_ended.wait(), seconds)
        except asyncio.TimeoutError:
            for answer in self.answers:
                if not answer.has_ended:
                    self._end(answer, f"no answer within {seconds:g} seconds")

    async def close(self) -> None:
        for task in self._connecting:
            task.cancel()
        await asyncio.gather(*self._connecting, return_exceptions=True)
        for connection in self._connections:
            connection.abort()
        self._idle.clear()
        await asyncio.sleep(0)  # for them to be lost

    # -- called by connections --------------------------------------------------------------------------------

    def on_whole(self, connection: _Connection, answer: Answer, *, is_reusable: bool) -> None:
        if is_reusable:
            self._idle.append(connection)
        else:
            connection.close()
        self._end(answer)

    def on_lost(self, connection: _Connection, answer: Answer | None) -> None:
        """A server may close a connection that it has kept for long enough just when the next request comes."""
        self._connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if answer is None or answer.has_ended:
            return
        if connection.was_used and not answer.pieces:
            self.num_resent += 1
            self._connect(answer)
        else:
            self._end(answer, "the server hung up before the reply was whole")

    def _connect(self, answer: Answer) -> None:
        task = asyncio.get_running_loop().create_task(self._send_anew(answer))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _send_anew(self, answer: Answer) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(lambda: _Connection(self, self._buffer), *self._address)
        except OSError as error:
            self._end(answer, repr(error))
        else:
            self._connections.add(connection)
            connection.send(answer)

    def _end(self, answer: Answer, error: str | None = None) -> None:
        self._num_open -= 1
        if self._num_open == 0:
            self._all_ended.set()
        answer.end(error)


class _Connection(asyncio.BufferedProtocol):
    """One exchange at a time."""

    def __init__(self, client: LightClient, buffer: memoryview) -> None:
        self.was_used = False
        self._client = client
        self._buffer = buffer
        self._transport: asyncio.Transport | None = None
        self._answer: Answer | None = None
        self._head = b""  # of the reply, in lower case, once all of it is here
        self._received = b""  # all of a reply that is not streamed, and of a stream its end
        self._num_bytes = 0  # of a reply that declares its length

    def send(self, answer: Answer) -> None:
        assert self._transport is not None
        self._answer, self._head, self._received = answer, b"", b""
        self._transport.write(answer.request)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # -- called by asyncio ----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        data = bytes(self._buffer[:nbytes])
        if self._answer is None:  # nobody asked for anything
            self.abort()
            return
        self._answer.pieces.append((perf_counter(), data))
        self._received += data
        if self._head or self._take_head():
            self._take_body()

    def connection_lost(self, error: Exception | None) -> None:
        self._client.on_lost(self, self._answer)

    # -- parts ------------------------------------------------------------------------------------------------

    def _take_head(self) -> bool:
        end = self._received.find(HEAD_END)
        if end < 0:
            return False
        self._head = self._received[:end].lower()
        length = self._head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
        self._num_bytes = end + len(HEAD_END) + int(length) if length.strip().isdigit() else 0
        return True

    def _take_body(self) -> None:
        if self._num_bytes:
            is_whole = len(self._received) >= self._num_bytes
        else:
            is_whole = self._received.endswith(LAST_CHUNK)
            self._received = self._received[-len(LAST_CHUNK) :]
        if is_whole and self._answer is not None:
            answer, self._answer, self.was_used = self._answer, None, True
            self._client.on_whole(self, answer, is_reusable=b"\r\nconnection: close" not in self._head)
