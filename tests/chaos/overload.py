"""R9: ten times the load that the server can bear. It goes on at its best, and says no in milliseconds.

The peak is measured in a closed loop. Then requests come at ten times that rate, whatever becomes of them. That is done
several times over and ends with a peak; each overload is compared with the peaks on either side of it, since what the
machine's other guests leave of it changes within a minute. How much they took is told for both.
Client and server share the machine: what a refusal takes is told as the client saw it, as the server's own log has
it, and beside the time by which this client's clock was late meanwhile, which is in the client's figure too.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import cycle, pairwise
from random import Random
from statistics import mean, median
from time import perf_counter

from roseinfer.bench.http_client import HttpClient
from tests.chaos.client import Stream
from tests.chaos.light_client import LightClient
from tests.chaos.memory import MemoryWatch, watch_memory
from tests.chaos.requests import ChaosRequest
from tests.chaos.result import Figure, Result, Scale, Settings, percentile
from tests.chaos.servers import ServerUnderTest
from tests.chaos.stolen import StolenTime
from tests.chaos.storm import REFUSALS, describe, is_refused, is_whole, raise_file_limit, retry_after, seconds_of
from tests.text_samples import real_text

HAS_PEER = True

FACTOR = 10
REFUSAL_SECONDS = 0.020
GOODPUT_SHARE = 0.95
MAX_SLOPE = 8.0  # MiB of memory per minute
RETRY_FACTOR = 3.0  # by which Retry-After may miss the wait that the queue means
TICK_SECONDS = 0.1
MAX_RESENT = 5  # a connection may end by its age just when it is used
DRAIN_SECONDS = 60.0  # for those who were taken, when nobody comes any more
MAX_OPEN = 4096  # requests that nobody has answered; a server that lets it come so far refuses nobody


@dataclass(frozen=True, slots=True)
class Load:
    num_rounds: int
    peak_seconds: float
    overload_seconds: float
    settle_seconds: float  # of either, that no figure counts
    num_at_once: int  # requests of the closed loop
    num_tokens: int  # of an answer
    max_queue: int
    kv_cache_memory: str  # so little that all of it has been touched when memory is looked at

    @property
    def flags(self) -> list[str]:
        limits = ["--max-running", str(self.num_at_once), "--max-queue", str(self.max_queue)]
        return [*limits, "--kv-cache-memory", self.kv_cache_memory]


@dataclass(frozen=True, slots=True)
class Phase:
    """What was asked, counted from `start` to `end`, and by how many seconds the client's own clock was late."""

    start: float
    end: float
    streams: list[Stream]
    lateness: list[float]
    stolen: float  # of the CPU time, by other guests
    num_resent: int = 0  # on another connection, as the one that was kept had ended

    @property
    def whole(self) -> list[Stream]:
        return [stream for stream in self.streams if is_whole(stream)]

    @property
    def refused(self) -> list[Stream]:
        return [stream for stream in self.streams if stream.status in REFUSALS and self._counts(stream.started_at)]

    @property
    def broken(self) -> list[Stream]:
        return [stream for stream in self.streams if not (is_whole(stream) or is_refused(stream))]

    @property
    def goodput(self) -> float:
        """Tokens per second that belong to whole answers, by the time at which they came."""
        return sum(map(self._num_tokens, self.whole)) / (self.end - self.start)

    def _num_tokens(self, stream: Stream) -> float:
        num_chunks = sum(map(self._counts, stream.chunk_times))
        return (stream.num_tokens or 0) * num_chunks / len(stream.chunk_times)

    def _counts(self, time: float) -> bool:
        return self.start <= time <= self.end


LOADS = {
    Scale.SHORT: Load(1, 3.0, 4.0, 1.0, 8, 16, 16, "32MiB"),
    Scale.FULL: Load(3, 30.0, 60.0, 10.0, 64, 32, 256, "128MiB"),
}


def run(settings: Settings, scale: Scale) -> Result:
    raise_file_limit(MAX_OPEN)
    load = LOADS[scale]
    with settings.server(*load.flags) as server:
        return asyncio.run(_measure(server, load))


async def _measure(server: ServerUnderTest, load: Load) -> Result:
    encoder = HttpClient(server.url)
    requests = [encoder.encode(*request) for request in make_requests(load.num_tokens)]
    peaks, overloads = [await closed_loop(server.url, requests, load)], []
    log_size = server.log_path.stat().st_size
    async with watch_memory(server) as memory:
        for _ in range(load.num_rounds):
            rate = FACTOR * max(peaks[-1].goodput / load.num_tokens, 1.0)
            overloads.append(await open_loop(server.url, requests, rate, load))
            peaks.append(await closed_loop(server.url, requests, load))
    logged = refusal_seconds(server.log_path.read_bytes()[log_size:])
    return _result(load, peaks, overloads, logged, memory)


def make_requests(num_tokens: int) -> list[ChaosRequest]:
    """Prompts of about 20 tokens that begin differently."""
    fields = {"max_tokens": num_tokens, "temperature": 0, "ignore_eos": True}
    options = {"stream": True, "stream_options": {"include_usage": True}}
    prompts = (f"{i}: {real_text(8000)[30 * i : 30 * i + 80]}" for i in range(256))
    return [ChaosRequest("/v1/completions", {"prompt": prompt, **fields, **options}) for prompt in prompts]


async def closed_loop(url: str, requests: Sequence[bytes], load: Load) -> Phase:
    """So many callers, each of whom asks again when it is answered."""
    left = cycle(requests)
    async with _client(url) as client, _lateness() as lateness:
        start, other_guests = perf_counter(), StolenTime()
        end = start + load.peak_seconds

        async def work() -> None:
            while perf_counter() < end:
                await client.ask(next(left))

        await asyncio.gather(*(work() for _ in range(load.num_at_once)))
        stolen = other_guests.share()
    return Phase(start + load.settle_seconds, end, _streams(client), lateness, stolen, client.num_resent)


async def open_loop(url: str, requests: Sequence[bytes], rate: float, load: Load) -> Phase:
    """`rate` requests per second on the average, whether answers come or not; those that were taken are waited for."""
    rng = Random(9)
    async with _client(url) as client:
        start = due = perf_counter()
        other_guests = StolenTime()
        async with _lateness() as lateness:
            for request in cycle(requests):
                due += rng.expovariate(rate)
                if due > start + load.overload_seconds or client.num_open >= MAX_OPEN:
                    break
                await asyncio.sleep(max(due - perf_counter(), 0.0))
                client.send(request)
        end, stolen = perf_counter(), other_guests.share()
        await client.settle(DRAIN_SECONDS)
    return Phase(start + load.settle_seconds, end, _streams(client), lateness, stolen, client.num_resent)


@asynccontextmanager
async def _client(url: str) -> AsyncIterator[LightClient]:
    client = LightClient(url)
    try:
        yield client
    finally:
        await client.close()


def _streams(client: LightClient) -> list[Stream]:
    """Read when nothing is measured any more."""
    return [answer.as_stream() for answer in client.answers]


@asynccontextmanager
async def _lateness() -> AsyncIterator[list[float]]:
    """By how many seconds this process came too late to its own appointments while the block ran."""
    lateness: list[float] = []

    async def tick() -> None:
        while True:
            due = perf_counter() + TICK_SECONDS
            await asyncio.sleep(TICK_SECONDS)
            lateness.append(perf_counter() - due)

    task = asyncio.create_task(tick())
    try:
        yield lateness
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def refusal_seconds(log: bytes) -> list[float]:
    """From the access log: how long each refusal took the server, from the request's head to the reply's end."""
    lines = [json.loads(line) for line in log.splitlines() if line.startswith(b"{") and line.endswith(b"}")]
    return [line["duration_ms"] / 1e3 for line in lines if line.get("status") in REFUSALS]


# -- what is said of it ---------------------------------------------------------------------------------------


def _result(
    load: Load, peaks: Sequence[Phase], overloads: Sequence[Phase], logged: Sequence[float], memory: MemoryWatch
) -> Result:
    refused = [stream for overload in overloads for stream in overload.refused]
    whole = [stream for overload in overloads for stream in overload.whole]
    broken = [stream for phase in [*peaks, *overloads] for stream in phase.broken]
    num_resent = sum(phase.num_resent for phase in [*peaks, *overloads])
    waits = [seconds_of(stream) for stream in refused]
    advice = [seconds for stream in refused if (seconds := retry_after(stream)) is not None]
    shares = shares_of_peak([phase.goodput for phase in peaks], [phase.goodput for phase in overloads])
    slope = median(memory.slope(overload.start, overload.end) for overload in overloads)
    peak = median(phase.goodput for phase in peaks)
    drain_seconds = load.max_queue * load.num_tokens / max(peak, 1.0)
    figures: dict[str, Figure] = {
        "peak goodput, tokens/s": round(peak, 1),
        "goodput, tokens/s": round(median(phase.goodput for phase in overloads), 1),
        "share of the peak": round(median(shares), 3),
        "peaks": ", ".join(f"{phase.goodput:.0f}" for phase in peaks),
        "shares": ", ".join(f"{share:.2f}" for share in shares),
        "CPU stolen, peaks": ", ".join(f"{phase.stolen:.0%}" for phase in peaks),
        "CPU stolen, overloads": ", ".join(f"{phase.stolen:.0%}" for phase in overloads),
        "asked": sum(len(overload.streams) for overload in overloads),
        "answered": len(whole),
        "refused": len(refused),
        "sent again": num_resent,
        **_milliseconds("refusal", waits),
        **_milliseconds("refusal in the server's log", logged),
        **_milliseconds("client late", [late for overload in overloads for late in overload.lateness]),
        "Retry-After p50, s": percentile(advice, 50),
        "queue drains in, s": round(drain_seconds, 1),
        "answer p99, s": round(percentile([seconds_of(stream) for stream in whole], 99), 2),
        "memory slope, MiB/min": round(slope, 1),
    }
    passed = (
        bool(waits)
        and percentile(waits, 99) <= REFUSAL_SECONDS
        and median(shares) >= GOODPUT_SHARE
        and slope <= MAX_SLOPE
        and is_plausible(percentile(advice, 50), drain_seconds)
        and not broken
        and num_resent <= MAX_RESENT
    )
    return Result("R9", f"{FACTOR} times the load", figures, passed, describe(broken))


def shares_of_peak(peaks: Sequence[float], overloads: Sequence[float]) -> list[float]:
    """Of each overload, as a part of the mean of the peaks before and after it."""
    around = [mean(pair) for pair in pairwise(peaks)]
    return [overload / peak if peak else 0.0 for overload, peak in zip(overloads, around, strict=True)]


def _milliseconds(name: str, seconds: Sequence[float]) -> dict[str, Figure]:
    return {f"{name} p{percent}, ms": round(percentile(seconds, percent) * 1e3, 2) for percent in (50, 99)}


def is_plausible(retry_after: float, drain_seconds: float) -> bool:
    """Whether the advice fits the time that the queue takes to drain, as far as whole seconds up to a minute can."""
    expected = min(max(drain_seconds, 1.0), 60.0)
    return expected / RETRY_FACTOR <= retry_after <= expected * RETRY_FACTOR
