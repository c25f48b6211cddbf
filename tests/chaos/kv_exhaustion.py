"""R8: four times as much is asked for as the KV cache holds. Requests wait and are preempted; not a byte differs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter

from roseinfer.backends.native.compiler import fastest_kv_dtype, kv_block_bytes
from roseinfer.catalog import resolve_model
from roseinfer.checkpoints import open_checkpoint
from roseinfer.core.config import load_config
from roseinfer.models import load_model
from tests.chaos.client import Stream, ask_all
from tests.chaos.memory import watch_memory
from tests.chaos.requests import ChaosRequest, mixed_requests
from tests.chaos.result import Figure, Result, Scale, Settings
from tests.chaos.servers import ServerUnderTest
from tests.chaos.storm import describe, is_whole, metric, raise_file_limit

HAS_PEER = True

SHARE = 0.25  # of the demand that the pool holds
BLOCK_SIZE = 16  # tokens


@dataclass(frozen=True, slots=True)
class Round:
    """All requests, once, and what the server counted; None for what it does not count."""

    streams: list[Stream]
    seconds: float
    num_tokens: float | None  # of prompts and answers
    num_preemptions: float | None
    growth: float  # MiB of memory


def run(settings: Settings, scale: Scale) -> Result:
    """The demand is what the requests take where there is room for all of them."""
    num_requests, max_tokens = scale.pick(20, 64), scale.pick(64, 192)
    raise_file_limit(num_requests)
    requests = mixed_requests(num_requests, 8, max_tokens=max_tokens, is_portable=settings.is_peer)
    with settings.server() as server:
        roomy = asyncio.run(_ask_all(server, requests))
    demand = roomy.num_tokens or num_requests * max_tokens
    num_blocks = round(SHARE * demand / BLOCK_SIZE)
    settings, flags = constrain(settings, num_blocks)
    with settings.server(*flags) as server:
        tight = asyncio.run(_ask_all(server, requests))
    return _result(roomy, tight, num_blocks)


def constrain(settings: Settings, num_blocks: int) -> tuple[Settings, list[str]]:
    """Settings and flags of the same server with so small a pool. Of a command's flags the last one holds."""
    if settings.peer_command is None:
        return settings, ["--kv-cache-memory", str(num_blocks * _block_bytes(settings.model))]
    return replace(settings, peer_command=f"{settings.peer_command} --ctx-size {num_blocks * BLOCK_SIZE}"), []


def _block_bytes(model: str) -> int:
    """As the server reckons it."""
    config = load_config({"model": model}, config_file=os.devnull)
    with open_checkpoint(resolve_model(model, config.models_dir)) as checkpoint:
        specs = load_model(checkpoint).graph.attention_specs
    return kv_block_bytes(specs, fastest_kv_dtype(config.isa))


async def _ask_all(server: ServerUnderTest, requests: Sequence[ChaosRequest]) -> Round:
    started = perf_counter()
    async with watch_memory(server) as memory:
        streams = await ask_all(server.url, requests)
    seconds = perf_counter() - started
    prompts = metric(server, "prompt_tokens_total")
    answers = metric(server, "generation_tokens_total", "tokens_predicted_total")
    num_tokens = None if prompts is None or answers is None else prompts + answers
    return Round(streams, seconds, num_tokens, metric(server, "num_preemptions_total"), memory.growth())


def _result(roomy: Round, tight: Round, num_blocks: int) -> Result:
    pairs = list(zip(roomy.streams, tight.streams, strict=True))
    num_exact = sum(is_whole(a) and is_whole(b) and a.answer == b.answer for a, b in pairs)
    broken = [stream for stream in (*roomy.streams, *tight.streams) if not is_whole(stream)]
    figures: dict[str, Figure] = {
        "requests": len(pairs),
        "exact": num_exact,
        "tokens asked for": _told(roomy.num_tokens),
        "tokens of room": num_blocks * BLOCK_SIZE,
        "preemptions": _told(tight.num_preemptions),
        "preemptions with room": _told(roomy.num_preemptions),
        "seconds": round(tight.seconds, 2),
        "seconds with room": round(roomy.seconds, 2),
        "memory growth, MiB": round(tight.growth, 1),
    }
    is_tight = bool(tight.num_preemptions) and not roomy.num_preemptions
    return Result(
        "R8", "KV cache a quarter of the demand", figures, num_exact == len(pairs) and is_tight, describe(broken)
    )


def _told(count: float | None) -> Figure:
    return "not told" if count is None else round(count)
