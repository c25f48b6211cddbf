"""R5: callers who send a byte a second, and callers who read nothing, are hung up on and cost the others nothing."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from time import perf_counter

from roseinfer.bench.http_client import HttpClient
from tests.chaos.memory import MIB, MemoryWatch, watch_memory
from tests.chaos.requests import ChaosRequest
from tests.chaos.result import Figure, Result, Scale, Settings, percentile
from tests.chaos.servers import ServerUnderTest
from tests.chaos.storm import SocketOption, connect, raise_file_limit

HAS_PEER = True

HEAD_SECONDS = 10.0  # that a head may take
BODY_SECONDS = 30.0
STALL_SECONDS = 60.0  # that a caller may read nothing of what waits for it
LATE_SECONDS = 3.0  # by which any of them may be missed
DRIP_SECONDS = 1.0
MAX_GROWTH = 50.0  # MiB, for all who do not read
MAX_RATIO = 1.25  # of a neighbour's time per token beside slow callers and beside good ones
SETTLE_SECONDS = 0.3
PATH = "/v1/completions"
NEIGHBOUR = ChaosRequest(
    PATH, {"prompt": "Once upon a time", "max_tokens": 2000, "temperature": 0, "ignore_eos": True, "stream": True}
)
# As over Ethernet, and little room with the caller: through loopback's large packets megabytes fit into the kernel.
NARROW: tuple[SocketOption, ...] = (
    (socket.SOL_SOCKET, socket.SO_RCVBUF, 4096),
    (socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1400),
)


@dataclass(frozen=True, slots=True)
class Load:
    num_heads: int
    num_bodies: int
    num_streams: int
    num_tokens: int  # of a stream that is not read
    phase_seconds: float  # over which the neighbour is looked at
    waits_for_stall: bool  # until those who do not read are hung up on

    @property
    def drip_limit(self) -> float:
        return (BODY_SECONDS if self.num_bodies else HEAD_SECONDS) + LATE_SECONDS

    @property
    def stall_limit(self) -> float:
        """Longer than it takes to make all tokens and to wait for their reader; 0 to go on at once."""
        return 3 * STALL_SECONDS if self.waits_for_stall else 0.0


LOADS = {
    Scale.SHORT: Load(60, 0, 16, 400, 2.0, False),
    Scale.FULL: Load(500, 200, 100, 256, 8.0, True),
}


def run(settings: Settings, scale: Scale) -> Result:
    load = LOADS[scale]
    raise_file_limit(load.num_heads + load.num_bodies + load.num_streams)
    with settings.server("--max-running", str(load.num_streams + 28)) as server:
        return asyncio.run(_measure(server, load))


@dataclass(frozen=True, slots=True)
class Gaps:
    """A neighbour's times per token, in seconds, phase by phase."""

    alone: list[float]
    beside_drips: list[float]
    beside_readers: list[float]
    beside_non_readers: list[float]


async def _measure(server: ServerUnderTest, load: Load) -> Result:
    client, port = HttpClient(server.url), server.port
    look = partial(neighbour, port, client.encode(*NEIGHBOUR), load.phase_seconds)
    alone = await look()
    dripping = asyncio.gather(*(drip(port, payload, load.drip_limit) for payload in _payloads(client, load)))
    beside_drips = await look()
    drips = await dripping
    streams = [client.encode(*_long_stream(load, i)) for i in range(load.num_streams)]
    async with _reading(port, streams):
        beside_readers = await look()
    num_fds = await _settled_fds(server)
    async with watch_memory(server) as memory, _opened(port, streams, *NARROW):
        beside_non_readers = await look()
        stall_seconds = await _seconds_until(lambda: server.num_fds(server.pid) <= num_fds, load.stall_limit)
    gaps = Gaps(alone, beside_drips, beside_readers, beside_non_readers)
    return _result(load, gaps, drips, stall_seconds, memory)


# -- who sends slowly -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Payload:
    kind: str  # head or body
    at_once: bytes
    then: bytes  # byte by byte


@dataclass(frozen=True, slots=True)
class Drip:
    kind: str
    seconds: float | None  # until the server hung up; None if it never did


def _payloads(client: HttpClient, load: Load) -> list[Payload]:
    request = client.encode(PATH, {"prompt": "x" * 1000, "max_tokens": 1})
    border = request.index(b"\r\n\r\n") + 4
    head = Payload("head", request[:20], request[20:border])
    body = Payload("body", request[: border + 10], request[border + 10 :])
    return [head] * load.num_heads + [body] * load.num_bodies


async def drip(port: int, payload: Payload, limit: float) -> Drip:
    started = perf_counter()
    connection = await connect(port)
    sending = asyncio.create_task(_send_slowly(connection, payload))
    try:
        await asyncio.wait_for(_read_to_the_end(connection), limit)
        return Drip(payload.kind, perf_counter() - started)
    except asyncio.TimeoutError:
        return Drip(payload.kind, None)
    finally:
        sending.cancel()
        connection.close()


async def _send_slowly(connection: socket.socket, payload: Payload) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):  # it has been hung up on, which the reader sees
        await loop.sock_sendall(connection, payload.at_once)
        for i in range(len(payload.then)):
            await asyncio.sleep(DRIP_SECONDS)
            await loop.sock_sendall(connection, payload.then[i : i + 1])


async def _read_to_the_end(connection: socket.socket) -> None:
    with contextlib.suppress(ConnectionError):
        while await asyncio.get_running_loop().sock_recv(connection, 4096):
            pass


# -- who does not read ----------------------------------------------------------------------------------------


def _long_stream(load: Load, index: int) -> ChaosRequest:
    """Each of its tokens takes about a kilobyte."""
    body = {"prompt": f"Number {index} of the list is", "max_tokens": load.num_tokens, "ignore_eos": True}
    return ChaosRequest(PATH, {**body, "logprobs": 20, "stream": True})


@asynccontextmanager
async def _reading(port: int, requests: Sequence[bytes]) -> AsyncIterator[None]:
    async with _opened(port, requests) as connections:
        tasks = [asyncio.create_task(_read_to_the_end(connection)) for connection in connections]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def _opened(port: int, requests: Sequence[bytes], *options: SocketOption) -> AsyncIterator[list[socket.socket]]:
    """A connection for each request, which has been sent."""
    connections = [await connect(port, *options) for _ in requests]
    try:
        for connection, request in zip(connections, requests, strict=True):
            await asyncio.get_running_loop().sock_sendall(connection, request)
        yield connections
    finally:
        for connection in connections:
            connection.close()


# -- who must not notice --------------------------------------------------------------------------------------


async def neighbour(port: int, request: bytes, seconds: float) -> list[float]:
    """The seconds between the tokens of its one stream, which is read for so long; of two that come at once 0."""
    connection = await connect(port)
    times: list[float] = []
    try:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(_read_tokens(connection, request, times), seconds)
    finally:
        connection.close()
    return [after - before for before, after in pairwise(times)]


async def _read_tokens(connection: socket.socket, request: bytes, times: list[float]) -> None:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(connection, request)
    while piece := await loop.sock_recv(connection, 1 << 16):
        times += [perf_counter()] * piece.count(b"data: ")


async def _settled_fds(server: ServerUnderTest) -> int:
    """Open files of the server once it has closed those of callers who are gone."""
    while True:
        num_fds = server.num_fds(server.pid)
        await asyncio.sleep(SETTLE_SECONDS)
        if server.num_fds(server.pid) == num_fds:
            return num_fds


async def _seconds_until(is_so: Callable[[], bool], limit: float) -> float | None:
    """None if it has not become so by then."""
    started = perf_counter()
    while (seconds := perf_counter() - started) < limit:
        if is_so():
            return seconds
        await asyncio.sleep(0.1)
    return None


# -- what is said of it ---------------------------------------------------------------------------------------


def _result(load: Load, gaps: Gaps, drips: Sequence[Drip], stall_seconds: float | None, memory: MemoryWatch) -> Result:
    heads = [drip.seconds for drip in drips if drip.kind == "head"]
    bodies = [drip.seconds for drip in drips if drip.kind == "body"]
    growth = (max(sample.server for sample in memory.samples) - memory.samples[0].server) / MIB
    ratios = [_ratio(gaps.beside_drips, gaps.alone), _ratio(gaps.beside_non_readers, gaps.beside_readers)]
    figures: dict[str, Figure] = {
        "head-drippers": len(heads),
        **_closed("head", heads),
        "body-drippers": len(bodies),
        **_closed("body", bodies),
        "streams not read": load.num_streams,
        "memory growth, MiB": round(growth, 1),
        "memory growth with the engine, MiB": round(memory.growth(), 1),
        "all hung up on after, s": "not waited for" if not load.waits_for_stall else _told(stall_seconds),
        **_milliseconds("alone", gaps.alone),
        **_milliseconds("beside drippers", gaps.beside_drips),
        **_milliseconds("beside readers", gaps.beside_readers),
        **_milliseconds("beside non-readers", gaps.beside_non_readers),
        "drippers to none": round(ratios[0], 3),
        "non-readers to readers": round(ratios[1], 3),
    }
    passed = (
        _is_in_time(heads, HEAD_SECONDS)
        and _is_in_time(bodies, BODY_SECONDS)
        and (stall_seconds is not None or not load.waits_for_stall)
        and growth <= MAX_GROWTH
        and max(ratios) <= MAX_RATIO
    )
    return Result("R5", "slow senders and slow readers", figures, passed)


def _closed(kind: str, seconds: Sequence[float | None]) -> dict[str, Figure]:
    ends = [second for second in seconds if second is not None]
    return {
        f"{kind}-drippers hung up on": len(ends),
        f"last {kind}-dripper after, s": round(max(ends), 1) if ends else "never",
    }


def _is_in_time(seconds: Sequence[float | None], limit: float) -> bool:
    return all(second is not None and second <= limit + LATE_SECONDS for second in seconds)


def _ratio(gaps: Sequence[float], reference: Sequence[float]) -> float:
    """Of the means; infinite where no token came."""
    return (sum(gaps) / len(gaps)) / (sum(reference) / len(reference)) if gaps and reference else float("inf")


def _milliseconds(name: str, gaps: Sequence[float]) -> dict[str, Figure]:
    return {f"token p{percent} {name}, ms": round(percentile(gaps, percent) * 1e3, 1) for percent in (50, 99)}


def _told(seconds: float | None) -> Figure:
    return "never" if seconds is None else round(seconds, 1)
