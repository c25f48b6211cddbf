"""R7: callers who hang up at every moment of a request. Nothing of theirs stays, and nobody else notices."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random
from time import perf_counter

from roseinfer.bench.http_client import HttpClient
from tests.chaos.client import Stream, ask
from tests.chaos.requests import ChaosRequest, mixed_requests
from tests.chaos.result import Figure, Result, Scale, Settings
from tests.chaos.servers import ServerUnderTest
from tests.chaos.storm import SocketOption, connect, is_whole, metric, raise_file_limit
from tests.text_samples import real_text

HAS_PEER = True

PHASES = ("connecting", "half head", "half body", "waiting", "first token", "mid stream")
# Metrics of what requests hold, ours and llama.cpp's.
HELD = (
    ("kv_cache_usage_perc",),
    ("num_requests_running", "requests_processing"),
    ("num_requests_waiting", "requests_deferred"),
)
NUM_AT_ONCE = 32
VICTIM_TOKENS = 200
MAX_PIECES = 24  # that a caller in mid stream reads before it hangs up
FREE_SECONDS = 0.5
GIVE_UP_SECONDS = 10.0
VICTIM_SECONDS = 60.0
# Closing a socket with this sends RST in place of FIN.
_RESET: SocketOption = (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@dataclass(frozen=True, slots=True)
class Victim:
    """A request whose caller hangs up."""

    request: bytes
    phase: str
    is_reset: bool
    num_sent: int  # bytes of the request
    num_pieces: int  # of the reply, read before the end
    delay: float  # seconds between the last of both and the end


def make_victims(url: str, count: int, seed: int) -> list[Victim]:
    """All phases in turn, resets and plain closes, prompts of up to about 150 tokens that begin differently."""
    rng, client = Random(seed), HttpClient(url)
    return [_make_victim(client, PHASES[i % len(PHASES)], rng) for i in range(count)]


def _make_victim(client: HttpClient, phase: str, rng: Random) -> Victim:
    prompt = f"{rng.randrange(10**6)}: {real_text(600)[: rng.randrange(600)]}"
    body = {"prompt": prompt, "max_tokens": VICTIM_TOKENS, "ignore_eos": True, "stream": True}
    request = client.encode("/v1/completions", body)
    head = request.index(b"\r\n\r\n") + 4
    ends = {"connecting": 0, "half head": rng.randrange(1, head), "half body": rng.randrange(head, len(request))}
    pieces = {"first token": 1, "mid stream": rng.randrange(2, MAX_PIECES)}
    return Victim(
        request,
        phase,
        is_reset=rng.random() < 0.5,
        num_sent=ends.get(phase, len(request)),
        num_pieces=pieces.get(phase, 0),
        delay=rng.random() * 0.05 if phase != "connecting" else 0.0,
    )


async def hang_up(port: int, victim: Victim) -> str:
    """How far it came: its phase, or what kept it from getting there."""
    try:
        return await asyncio.wait_for(_hang_up(port, victim), VICTIM_SECONDS)
    except (OSError, asyncio.TimeoutError) as error:
        return f"{victim.phase}: {type(error).__name__}"


async def _hang_up(port: int, victim: Victim) -> str:
    connection = await connect(port)
    try:
        await asyncio.get_running_loop().sock_sendall(connection, victim.request[: victim.num_sent])
        status = await _read_pieces(connection, victim.num_pieces)
        await asyncio.sleep(victim.delay)
        return victim.phase if status in ("", "200") else f"{victim.phase}: HTTP {status}"
    finally:
        if victim.is_reset:
            connection.setsockopt(*_RESET)
        connection.close()


async def _read_pieces(connection: socket.socket, count: int) -> str:
    """The reply's status, empty if nothing was to be read; less is read where there is no more."""
    status = ""
    for _ in range(count):
        piece = await asyncio.get_running_loop().sock_recv(connection, 1 << 16)
        status = status or piece[9:12].decode("latin-1")
        if not piece or status != "200":
            break
    return status


def run(settings: Settings, scale: Scale) -> Result:
    raise_file_limit(2 * NUM_AT_ONCE)
    survivors = mixed_requests(scale.pick(5, 10), 7, max_tokens=scale.pick(48, 128), is_portable=settings.is_peer)
    with settings.server() as server:
        return asyncio.run(_measure(server, survivors, scale.pick(120, 2000)))


async def _measure(server: ServerUnderTest, survivors: Sequence[ChaosRequest], num_victims: int) -> Result:
    alone = [await ask(server.url, request) for request in survivors]
    before = _held(server)
    num_fds = server.num_fds(server.pid)
    victims = make_victims(server.url, num_victims, seed=7)
    async with _surviving(server.url, survivors) as survived:
        ends = await _hang_up_all(server.port, victims[:-NUM_AT_ONCE])
    # Nobody else is there when the last ones go, so that whatever is left is theirs.
    ends += await asyncio.gather(*(hang_up(server.port, victim) for victim in victims[-NUM_AT_ONCE:]))
    free_seconds = await _seconds_until_free(server, before)
    num_fds_left = await _num_fds_left(server, num_fds)
    return _result(ends, _compare(alone, survived), free_seconds, num_fds_left)


async def _hang_up_all(port: int, victims: Sequence[Victim]) -> list[str]:
    """`NUM_AT_ONCE` at a time."""
    ends: list[str] = []
    left = iter(victims)

    async def work() -> None:
        for victim in left:
            ends.append(await hang_up(port, victim))

    await asyncio.gather(*(work() for _ in range(NUM_AT_ONCE)))
    return ends


@asynccontextmanager
async def _surviving(url: str, requests: Sequence[ChaosRequest]) -> AsyncIterator[list[list[Stream]]]:
    """Ask the same over and over until the block is left, and finish what they have begun."""
    answers: list[list[Stream]] = [[] for _ in requests]
    is_over = False

    async def survive(request: ChaosRequest, mine: list[Stream]) -> None:
        while not is_over:
            mine.append(await ask(url, request))

    tasks = [asyncio.create_task(survive(*pair)) for pair in zip(requests, answers, strict=True)]
    try:
        yield answers
    finally:
        is_over = True
        await asyncio.gather(*tasks)


# -- what the server holds ------------------------------------------------------------------------------------


def _held(server: ServerUnderTest) -> list[float | None]:
    """The share of the KV cache and the requests that run and wait, as far as the server tells."""
    return [metric(server, *names) for names in HELD]


async def _seconds_until_free(server: ServerUnderTest, before: list[float | None]) -> float | None:
    """Until as much is free as before; None if that takes too long, or nobody tells."""
    started = asked_at = perf_counter()
    while any(value is not None for value in before) and asked_at - started < GIVE_UP_SECONDS:
        asked_at = perf_counter()
        if _held(server) == before:
            return asked_at - started
        await asyncio.sleep(0.01)
    return None


async def _num_fds_left(server: ServerUnderTest, before: int) -> int:
    """Open files more than before, once the server has had time to close its own."""
    deadline = perf_counter() + GIVE_UP_SECONDS
    while (num_left := server.num_fds(server.pid) - before) > 0 and perf_counter() < deadline:
        await asyncio.sleep(0.05)
    return max(num_left, 0)


# -- what is said of it ---------------------------------------------------------------------------------------


def _compare(alone: Sequence[Stream], survived: Sequence[Sequence[Stream]]) -> tuple[int, int]:
    """How many answers survivors got, and how many of them are not what the server says when nothing is wrong."""
    pairs = [(expected, found) for expected, answers in zip(alone, survived, strict=True) for found in answers]
    num_wrong = sum(not is_whole(found) or found.answer != expected.answer for expected, found in pairs)
    return len(pairs), num_wrong


def _result(ends: Sequence[str], survivors: tuple[int, int], free_seconds: float | None, num_fds_left: int) -> Result:
    num_survived, num_wrong = survivors
    phases = Counter(end for end in ends if end in PHASES)
    others = Counter(end for end in ends if end not in PHASES)
    figures: dict[str, Figure] = {
        "disconnects": len(ends),
        **{f"in {phase}": phases[phase] for phase in PHASES},
        "survivors' answers": num_survived,
        "of these wrong": num_wrong,
        "KV free again, ms": "never" if free_seconds is None else round(free_seconds * 1e3),
        "open files left": num_fds_left,
    }
    is_free = free_seconds is not None and free_seconds <= FREE_SECONDS and num_fds_left == 0
    notes = [f"{count} × {end}" for end, count in others.most_common(5)]
    passed = is_free and num_survived > 0 and num_wrong == 0 and not others
    return Result("R7", "callers who hang up", figures, passed, notes)
