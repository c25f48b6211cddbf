"""The transport that replies are written to: asyncio's, with manners."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

# What waits for a caller that reads slowly: beyond it, whoever makes the reply waits too.
WRITE_BUFFER_BYTES = 16 * 1024
# The kernel doubles it. Without a size it would take megabytes from us for a caller that reads nothing.
SEND_BUFFER_BYTES = 64 * 1024
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class ReplyTransport:
    """Holds a reply's head back for its first piece of body, if that follows at once, and hangs up politely.

    uvicorn writes head and body one after the other: two packets and two system calls, here and with the caller.

    A socket that is closed while the caller still sends is reset by the kernel, and the caller may never see the reply.
    Where `is_input_open` says that there is more to come, `close` therefore ends our direction only; whoever reads
    has to swallow what comes and to `reset` the connection some time after `half_closed_at`.

    `ends_with_close`: the end of the reply that is written now is the end of the connection, so that one that is
    closed before must not look like one that is whole.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self.is_input_open = False
        self.ends_with_close = False
        self.half_closed_at: float | None = None
        self._transport = transport
        self._loop = loop
        self._head = b""
        self._num_written = 0
        self._num_taken = 0  # when it was last looked at
        self._taken_at = loop.time()
        transport.set_write_buffer_limits(WRITE_BUFFER_BYTES)

    def write(self, data: bytes) -> None:
        if self.half_closed_at is not None:
            return
        if self._head:
            data, self._head = self._head + data, b""
        elif data.startswith(b"HTTP/1.1 "):
            self._head = data
            self._loop.call_soon(self._flush)
            return
        self._send(data)

    def write_reply(self, data: bytes) -> None:
        """A reply that is whole."""
        if self.half_closed_at is not None:
            return
        self._flush()
        self._send(data)

    def is_closing(self) -> bool:
        return self.half_closed_at is not None or self._transport.is_closing()

    def close(self) -> None:
        if self.ends_with_close:
            self.reset()
        elif self.is_input_open and not self.is_closing():
            self.half_close()
        else:
            self._flush()
            self._transport.close()

    def half_close(self) -> None:
        self._flush()
        self.half_closed_at = self._loop.time()
        self._transport.write_eof()
        self._transport.resume_reading()

    def reset(self) -> None:
        """At once, and so that the caller sees it: nothing is kept for it, by us or by the kernel."""
        connection = self._transport.get_extra_info("socket")
        if connection is not None and connection.fileno() >= 0:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._transport.abort()

    @property
    def is_flushed(self) -> bool:
        return not self._head and self._transport.get_write_buffer_size() == 0

    def stalled_seconds(self, now: float) -> float:
        """How long the caller has taken nothing of what waits for it, as seen when this is called now and then."""
        num_unsent = self._transport.get_write_buffer_size()
        num_taken = self._num_written - num_unsent
        if num_unsent == 0 or num_taken != self._num_taken:
            self._num_taken, self._taken_at = num_taken, now
        return now - self._taken_at

    def _flush(self) -> None:
        if self._head:
            self._send(self._head)
            self._head = b""

    def _send(self, data: bytes) -> None:
        self._num_written += len(data)
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
