"""uvicorn's fast HTTP protocol (httptools, around Node's parser) with the bounds that the parser leaves to others."""

from __future__ import annotations

import asyncio
import functools
from dataclasses import dataclass
from typing import Any

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser, parse_url
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from roseinfer.server.broken_reply import offer_break_off
from roseinfer.server.errors import OVERLOADED
from roseinfer.server.gate import Refusal
from roseinfer.server.http_limits import SharedState
from roseinfer.server.http_refusal import refusal
from roseinfer.server.http_transport import ReplyTransport
from roseinfer.server.middleware.head_limit import MAX_HEAD_BYTES

MAX_PIPELINED = 64  # requests that wait for the one before them
MAX_AWAITED_BYTES = 64 * 1024  # of a body that is read though its request is refused, to keep the connection
MAX_LINGERING = 256  # connections beyond the limit that get the time to read why they are refused
RETRY_SECONDS = 1  # when there may be room for a connection again
NEW_SECONDS = 0.2  # in which the request comes that a connection was made for
WIND_DOWN_SECONDS = 1.0  # without a request, until a connection of a server that stops is closed


@dataclass(frozen=True, slots=True)
class _Refused:
    """A request that never gets to the app. A small body is waited for, so that the connection can go on."""

    cycle: RequestResponseCycle
    refusal: Refusal
    awaits_until: float  # on the loop's clock

    def is_due(self, now: float) -> bool:
        return not self.cycle.more_body or now >= self.awaits_until


class BoundedHttpProtocol(HttpToolsProtocol):
    """Ends connections that send much and say nothing, or that neither send nor read, and refuses ambiguous heads.

    Whatever is neither a whole head nor body counts: heads and trailers that drip in, chunk extensions, blank lines.
    A head that arrives in one piece is bounded by `HeadLimitMiddleware`, which can answer it.

    There are no timers: the server calls `check` of each connection about once a second.
    """

    server_state: SharedState
    transport: ReplyTransport  # type: ignore[assignment]

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self._num_pending_bytes = 0
        self._deadline: float | None = None  # for a head; while a request is answered nobody is waiting for one
        self._is_deaf = False  # what comes is swallowed
        self._keeps_alive = False  # as the last head would have it
        self._idle_since = 0.0
        self._head_at = 0.0  # when the last one was here
        self._swallowed_at = 0.0  # when something last came that nobody reads
        self._refused: _Refused | None = None  # until it is answered

    @property
    def is_busy(self) -> bool:
        """Whether a request is read or answered, or a reply is on its way."""
        return self._is_answering() or not self.transport.is_flushed

    @property
    def is_unused(self) -> bool:
        """Whether nothing was ever asked here."""
        return self.cycle is None

    @property
    def is_kept_alive(self) -> bool:
        """Whether its caller may be sending another request just now."""
        return not self.is_unused and not self._is_answering() and not self.transport.is_closing()

    def is_new(self, now: float) -> bool:
        """Whether its first request may be on its way."""
        return self.is_unused and now - self._idle_since < NEW_SECONDS

    # -- called by the event loop -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(ReplyTransport(transport, self.loop))  # type: ignore[arg-type]
        limits = self.server_state.limits
        self._idle_since = self.loop.time()
        self._deadline = self._idle_since + limits.head_seconds
        num_excess = len(self.connections) - limits.max_connections
        if num_excess > 0:
            self._refuse(503, "the server has too many connections", code=OVERLOADED, retry_after=RETRY_SECONDS)
        if num_excess > MAX_LINGERING:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport.is_input_open = self.transport.ends_with_close = False
        self._unset_keepalive_if_required()
        super().connection_lost(exc)
        self._end_refusal()

    def data_received(self, data: bytes) -> None:
        if self._is_deaf or self.transport.half_closed_at is not None:
            self._swallowed_at = self.loop.time()
            return
        self._take(data)
        self._answer_if_due()  # only now: there may have been more requests behind the one that is refused

    # -- called by the parser ---------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            raise ValueError(f"more than {MAX_PIPELINED} requests at once")
        self._deadline = self.loop.time() + self.server_state.limits.head_seconds
        self._unset_keepalive_if_required()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        _check_head(self.parser, self.url, self.headers)
        if self.parser.should_upgrade():
            return
        self._num_pending_bytes = 0
        self._deadline = None
        self._head_at = self.loop.time()
        is_old = self.parser.get_http_version() == "1.0"
        self.expect_100_continue &= not is_old
        super().on_headers_complete()
        if is_old:
            self.cycle.__class__ = _CloseDelimitedCycle
        self._keeps_alive = self.cycle.keep_alive
        self.cycle.keep_alive &= not self.server_state.is_draining
        self.transport.is_input_open = True

    def on_body(self, body: bytes) -> None:
        self._num_pending_bytes = 0
        if self._refused is None or self._refused.cycle is not self.cycle:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._num_pending_bytes = 0
        self._is_deaf = not self._keeps_alive
        self.transport.is_input_open = False
        if not self.cycle.response_started:
            self.cycle.keep_alive = self._keeps_alive and not self.server_state.is_draining
        super().on_message_complete()

    # -- called by the request --------------------------------------------------------------------------------

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._idle_since = self.loop.time()
        if self._deadline is not None:
            self._deadline = self.loop.time() + self.server_state.limits.head_seconds
        self._answer_if_due()  # what waited for this one may be refused

    # -- called by the server ---------------------------------------------------------------------------------

    def check(self, now: float) -> None:
        """Ends the connection if its caller has taken too long."""
        limits = self.server_state.limits
        if self.transport.stalled_seconds(now) >= limits.write_seconds or self._has_lingered(now):
            self.transport.reset()
        elif self._refused is not None:
            self._answer_if_due()
        elif self._deadline is not None and now >= self._deadline and not self._is_answering():
            self._end_of_patience(limits.head_seconds)

    def wind_down(self, now: float, stopped_at: float) -> None:
        """To be called again and again once the server was told to stop, at `stopped_at`.

        A caller who has not been told that the connection ends may be sending a request while it is closed, and would
        never see an answer.
        """
        if self._is_answering():
            self.cycle.keep_alive &= self.cycle.response_started
        elif self.is_kept_alive and now - max(self._idle_since, stopped_at) >= WIND_DOWN_SECONDS:
            self.transport.close()

    def drop(self) -> None:
        """At once; a reply that is cut off is seen to be."""
        self.transport.reset()

    # -- parts ------------------------------------------------------------------------------------------------

    def _take(self, data: bytes) -> None:
        self._num_pending_bytes += len(data)
        try:
            self._read(data)
        except HttpParserError as error:
            if not self._is_deaf:
                self._refuse(400, f"this is no valid HTTP request: {_reason(error)}")
            return
        if self.transport.is_input_open:
            # A reply that is sent before the body is here says that the connection ends with it.
            self.cycle.keep_alive = False
        if self._num_pending_bytes > MAX_HEAD_BYTES:
            self._refuse(431, f"the request's head is larger than {MAX_HEAD_BYTES} bytes")

    def _read(self, data: bytes) -> None:
        """Reads a request that offers to upgrade (every one of Java's HTTP client does) like any other.

        httptools stops behind the head of such a request, and its parser may take it for the connection's last. What
        follows is read by a new one as if there had been no offer.
        """
        rest = memoryview(data)
        while True:
            try:
                self.parser.feed_data(rest)
                return
            except HttpParserUpgrade as offer:
                rest = rest[offer.args[0] :]
            head = self._head_without_upgrade()
            self.parser = HttpRequestParser(self)
            self.parser.feed_data(head)

    def _head_without_upgrade(self) -> bytes:
        """The last head as it would be without its offer."""
        start = self.parser.get_method(), self.url, self.parser.get_http_version().encode()
        headers = [b"%s: %s\r\n" % header for header in self.headers if header[0] != b"upgrade"]
        return b"%s %s HTTP/%s\r\n%s\r\n" % (*start, b"".join(headers))

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """Called when its head is here or, if there was a request before it, when that has been answered."""
        refusal = None
        if cycle.more_body and not (self.flow.write_paused or self.server_state.is_draining):
            refusal = self.server_state.gate.refusal(cycle.scope)  # type: ignore[arg-type]
        if refusal is None:
            offer_break_off(cycle.scope, functools.partial(_break_off, cycle))  # type: ignore[arg-type]
            super()._start_asgi_task(cycle, app)
        else:
            seconds = self.server_state.limits.await_seconds if _awaits_body(cycle) else 0.0
            self._refused = _Refused(cycle, refusal, self.loop.time() + seconds)

    def _answer_if_due(self) -> None:
        """Not where the connection ends: whoever ends it sees to the refusal."""
        if self._refused is None or self.transport.is_closing() or not self._refused.is_due(self.loop.time()):
            return
        refused, self._refused = self._refused, None
        self._answer(refused)
        try:
            refused.refusal.end()
        finally:  # a log that fails must not keep the connection from going on
            self.on_response_complete()

    def _answer(self, refused: _Refused) -> None:
        cycle = refused.cycle
        cycle.keep_alive &= not cycle.more_body
        reply = refused.refusal.reply(self.server_state.default_headers, is_last=not cycle.keep_alive)
        self.transport.write_reply(reply)
        cycle.response_started = cycle.response_complete = True
        cycle.on_response = lambda: None  # or the two would keep each other, until garbage is collected
        if not cycle.keep_alive:
            self.transport.close()

    def _end_refusal(self) -> None:
        refused, self._refused = self._refused, None
        if refused is not None:
            refused.refusal.end()

    def _has_lingered(self, now: float) -> bool:
        """Whether a caller who is hung up on had its time to read why; not while it goes on with its body."""
        since = self.transport.half_closed_at
        if since is None:
            return False
        limits, cycle = self.server_state.limits, self.cycle
        is_sending = cycle is not None and cycle.response_complete and cycle.more_body
        if is_sending and now - self._head_at < limits.body_seconds:
            since = max(since, self._swallowed_at)
        return now - since >= limits.linger_seconds

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete and not self.cycle.disconnected

    def _end_of_patience(self, seconds: float) -> None:
        self._deadline = None
        if self._num_pending_bytes:
            self._refuse(408, f"the request's head did not arrive within {seconds:g} seconds")
        else:
            self.transport.close()

    def _refuse(self, status: int, message: str, *, code: str | None = None, retry_after: int | None = None) -> None:
        """Nothing is read any more. Whole requests that came before are answered; the reply must not get into theirs.

        Within the body of a request that waits for others, or whose reply has begun, there is nothing left but to
        hang up.
        """
        self._is_deaf = True
        if self._is_answering() and not self.transport.is_input_open:
            self.cycle.keep_alive = False
            return
        if not self._is_replying():
            reply = refusal(status, message, code=code, retry_after=retry_after)
            self.transport.write(reply)
            if self._refused is not None:
                self._refused.refusal.note(status, reply.partition(b"\r\n\r\n")[2])
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.is_input_open = True
        self.transport.close()
        self._end_refusal()

    def _is_replying(self) -> bool:
        return bool(self.pipeline) or (self._is_answering() and self.cycle.response_started)


class _CloseDelimitedCycle(RequestResponseCycle):
    """HTTP/1.0 knows no chunks: a reply of unknown length ends with the connection."""

    transport: ReplyTransport  # type: ignore[assignment]

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.transport.ends_with_close = all(name != b"content-length" for name, _ in message["headers"])
            self.chunked_encoding = False if self.transport.ends_with_close else None
        elif self.transport.ends_with_close:
            self.expected_content_length = len(message.get("body", b""))
            self.transport.ends_with_close = message.get("more_body", False)
        await super().send(message)


def _break_off(cycle: RequestResponseCycle) -> None:
    """The end that is missing tells; where the connection's end would be the reply's, the transport resets it."""
    cycle.disconnected = True
    cycle.transport.close()


def _check_head(parser: HttpRequestParser, url: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    """Raises ValueError for what two readers may read differently; it stops the parser, and 400 is the answer."""
    version = parser.get_http_version()
    if version not in ("1.0", "1.1") or parser.get_method() == b"CONNECT":
        raise ValueError("this server speaks HTTP 1.0 and 1.1, and is no proxy")
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) != 1 and (hosts or version == "1.1"):  # RFC 9112, 3.2
        raise ValueError("a request needs exactly one Host header")
    if not url.startswith(b"/"):
        _check_target(url, hosts)
    for name, value in headers:
        if name == b"transfer-encoding" and (version == "1.0" or value.lower() != b"chunked"):  # RFC 9112, 6.1
            raise ValueError("the only Transfer-Encoding is chunked, since HTTP/1.1")


def _check_target(url: bytes, hosts: list[bytes]) -> None:
    """A target that names the host itself must name the same as the Host header; RFC 9112, 3.2.2 has it win."""
    target = parse_url(url)
    if not target.host or not target.path:
        raise ValueError("the request's target must be a path")
    authority = target.host if target.port is None else b"%s:%d" % (target.host, target.port)
    if target.userinfo or any(host.lower() != authority.lower() for host in hosts):
        raise ValueError("the request's target and its Host header disagree")


def _awaits_body(cycle: RequestResponseCycle) -> bool:
    """Whether it is declared to be small, and on its way."""
    if cycle.waiting_for_100_continue:
        return False
    headers = dict(cycle.scope["headers"])
    return b"transfer-encoding" not in headers and int(headers.get(b"content-length", 0)) <= MAX_AWAITED_BYTES


def _reason(error: HttpParserError) -> str:
    """Ours, where one of our checks has stopped the parser, otherwise the parser's."""
    return str(error.__context__ or error)
