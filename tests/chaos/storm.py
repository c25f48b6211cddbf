"""What all loads by the thousand need: sockets of every kind, what refusals look like, what the server counts."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections import Counter
from collections.abc import Sequence

import httpx

from tests.chaos.client import Stream
from tests.chaos.servers import ServerUnderTest

REFUSALS = (429, 503)
MAX_RETRY_AFTER = 3600.0  # seconds; more is no advice

SocketOption = tuple[int, int, int | bytes]


def is_whole(stream: Stream) -> bool:
    return stream.status == 200 and stream.error is None


def is_refused(stream: Stream) -> bool:
    """Turned away as it should be, with word of when to come back."""
    return stream.status in REFUSALS and retry_after(stream) is not None


def retry_after(stream: Stream) -> float | None:
    """Seconds; None without advice that makes sense."""
    header = stream.headers.get("retry-after", "")
    seconds = float(header) if header.isdecimal() else 0.0
    return seconds if 1 <= seconds <= MAX_RETRY_AFTER else None


def seconds_of(stream: Stream) -> float:
    return stream.ended_at - stream.started_at


def describe(broken: Sequence[Stream]) -> list[str]:
    """What went wrong, the most frequent first."""
    causes = Counter(f"status {stream.status}, {stream.error}" for stream in broken)
    return [f"{count} × {cause}" for cause, count in causes.most_common(5)]


def metric(server: ServerUnderTest, *names: str) -> float | None:
    """The sum over labels of the first of `names`, without prefixes, that the server tells; None if it tells none."""
    try:
        series = server.metrics()
    except httpx.HTTPStatusError:
        return None
    for name in names:
        values = [value for found, value in series.items() if found.partition("{")[0].rpartition(":")[2] == name]
        if values:
            return sum(values)
    return None


def raise_file_limit(num_files: int) -> None:
    """So that this process may hold `num_files` sockets and some more. Raises RuntimeError if it may not."""
    needed = num_files + 256
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise RuntimeError(f"{needed} open files are needed, and the limit is {hard}; see ulimit -n")
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


async def connect(port: int, *options: SocketOption) -> socket.socket:
    """A bare non-blocking socket to a server here, with options set before it connects; raises OSError."""
    connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    connection.setblocking(False)
    try:
        for option in options:
            connection.setsockopt(*option)
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
    except BaseException:
        connection.close()
        raise
    return connection
