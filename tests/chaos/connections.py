"""R6: a thousand streaming connections at once. Each is answered in full or told when to come back; none is dropped."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import perf_counter

from tests.chaos.client import Stream, ask_all
from tests.chaos.memory import MemoryWatch, watch_memory
from tests.chaos.requests import ChaosRequest
from tests.chaos.result import Figure, Result, Scale, Settings, percentile
from tests.chaos.servers import ServerUnderTest
from tests.chaos.storm import describe, is_refused, is_whole, raise_file_limit, seconds_of

HAS_PEER = True

PROMPT = "The capital of France is"
# So that the short storm overflows the queue as well.
SHORT_FLAGS = ("--max-running", "16", "--max-queue", "64")


def run(settings: Settings, scale: Scale) -> Result:
    num_connections, num_tokens = scale.pick(200, 1000), scale.pick(8, 32)
    raise_file_limit(num_connections)
    with settings.server(*(SHORT_FLAGS if scale is Scale.SHORT else ())) as server:
        return asyncio.run(_measure(server, num_connections, num_tokens))


async def _measure(server: ServerUnderTest, num_connections: int, num_tokens: int) -> Result:
    """All ask the same, so that all answers must be the same."""
    body = {"prompt": PROMPT, "max_tokens": num_tokens, "temperature": 0, "ignore_eos": True, "stream": True}
    request = ChaosRequest("/v1/completions", body)
    [alone] = await ask_all(server.url, [request])
    async with watch_memory(server) as memory:
        started = perf_counter()
        streams = await ask_all(server.url, [request] * num_connections)
        seconds = perf_counter() - started
    return _result(alone, streams, seconds, memory)


def _result(alone: Stream, streams: Sequence[Stream], seconds: float, memory: MemoryWatch) -> Result:
    whole = [stream for stream in streams if is_whole(stream)]
    refused = [stream for stream in streams if is_refused(stream)]
    broken = [stream for stream in streams if not (is_whole(stream) or is_refused(stream))]
    num_different = sum(stream.answer != alone.answer for stream in whole)
    first_tokens = [stream.gaps[0] for stream in whole if stream.gaps]
    figures: dict[str, Figure] = {
        "connections": len(streams),
        "answered": len(whole),
        "refused with Retry-After": len(refused),
        "broken": len(broken),
        "different from alone": num_different,
        "seconds": round(seconds, 2),
        "refusal p99, ms": round(percentile([seconds_of(stream) for stream in refused], 99) * 1e3, 1),
        "first token p50, s": round(percentile(first_tokens, 50), 2),
        "first token p99, s": round(percentile(first_tokens, 99), 2),
        "memory growth, MiB": round(memory.growth(), 1),
    }
    passed = is_whole(alone) and bool(whole) and not broken and not num_different
    return Result("R6", "streaming connections at once", figures, passed, describe(broken))
