"""R14: a hundred thousand requests of every kind leave nothing behind: no memory, thread, open file or KV block.

The server's KV cache is small enough to be full after the warm-up, because finished blocks stay cached by design and
memory is committed as blocks are first used. What is counted is counted when nothing runs, before and behind.
"""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from time import perf_counter

from roseinfer.bench.http_client import BadResponseError, HttpClient
from tests.chaos.disconnects import hang_up
from tests.chaos.memory import MIB
from tests.chaos.model_file import file_of, write_tiny_model
from tests.chaos.result import Figure, Result, Scale, Settings
from tests.chaos.servers import ServerUnderTest
from tests.chaos.soak_requests import MODEL, SoakRequest, soak_requests

NUM_AT_ONCE = 16
FLAGS = ("--max-model-len", "512", "--served-model-name", MODEL)
# Some 3,000 tokens for SmolLM2, 4,000 for the tiny model, whose kernels are too small for a second thread.
FULL_FLAGS = ("--kv-cache-memory", "64MiB")
SHORT_FLAGS = ("--kv-cache-memory", "1MiB", "--threads", "1")
NUM_SAMPLES = 100
SETTLE_SECONDS = 15.0
STILL_SECONDS = 1.0  # without a change: whatever was to be closed is
REPLY_SECONDS = 120.0
MAX_NOTES = 10
MAX_SLOPE = 1.0  # MiB of each process per 10,000 requests
# A run of 1,500 cannot tell so little from caches that still fill and an allocator's steps of 2 MiB, which come to 15
# to 35. This bound is 8 KiB a request: what keeps an answer's logprobs, or a body and the objects made of it, shows.
MAX_SHORT_SLOPE = 80.0

STREAM_ENDS = (b"data: [DONE]", b"event: message_stop", b"event: response.completed", b"event: response.incomplete")
IDLE = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")


@dataclass(frozen=True, slots=True)
class Held:
    """What a process holds."""

    pid: int
    num_fds: int
    num_threads: int

    def is_more_than(self, before: Held) -> bool:
        """Another process is: the one before has not come through. A pool of threads may have become smaller."""
        return self.pid != before.pid or self.num_fds > before.num_fds or self.num_threads > before.num_threads


@dataclass(frozen=True, slots=True)
class Rest:
    """What is left when nobody asks for anything: by process, and of requests and KV blocks."""

    held: dict[str, Held]
    in_use: dict[str, float]  # by metric, 0 for all of them where nothing was lost

    def is_more_than(self, before: Rest) -> bool:
        if self.held.keys() != before.held.keys() or any(self.in_use.values()):
            return True
        return any(self.held[name].is_more_than(before.held[name]) for name in before.held)


@dataclass
class Soak:
    """Sends requests to `server`, `NUM_AT_ONCE` at a time, and keeps count."""

    server: ServerUnderTest
    num_done: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    memory: dict[str, list[tuple[int, int]]] = field(default_factory=dict)  # process → (requests, bytes)

    async def send(self, client: HttpClient, requests: Iterator[SoakRequest], sample_every: int) -> None:
        async def work() -> None:
            for request in requests:
                await self._send(client, request)
                self.num_done += 1
                if self.num_done % sample_every == 0:
                    self._sample()

        await asyncio.gather(*(work() for _ in range(NUM_AT_ONCE)))

    async def _send(self, client: HttpClient, request: SoakRequest) -> None:
        self.kinds[request.kind] += 1
        if request.victim is not None:
            # How far it came is chance: a short answer may be over before its caller goes.
            await hang_up(self.server.port, request.victim)
            return
        fault = await _fault(client, request)
        if fault is not None:
            self.faults[f"{request.kind}: {fault}"] += 1

    def processes(self) -> dict[str, int]:
        """The engine is a part of the server's process where it has none of its own."""
        try:
            return {"server": self.server.pid, "engine": self.server.engine_pid()}
        except LookupError:
            return {"server": self.server.pid}

    def _sample(self) -> None:
        for name, pid in self.processes().items():
            self.memory.setdefault(name, []).append((self.num_done, self.server.rss_anon(pid)))

    # -- when nothing runs ------------------------------------------------------------------------------------

    async def settled(self) -> Rest:
        """What is left once nothing is in use or changes any more, or after a while."""
        rest, still_since, deadline = self._rest(), perf_counter(), perf_counter() + SETTLE_SECONDS
        while perf_counter() - still_since < STILL_SECONDS and perf_counter() < deadline:
            await asyncio.sleep(0.1)
            rest, before = self._rest(), rest
            if rest != before or any(rest.in_use.values()):
                still_since = perf_counter()
        return rest

    def _rest(self) -> Rest:
        """The cache's usage is exactly 0 if free and cached blocks are all there are."""
        server = self.server
        metrics = {name.partition("{")[0].rpartition(":")[2]: value for name, value in server.metrics().items()}
        return Rest(
            {name: Held(pid, server.num_fds(pid), server.num_threads(pid)) for name, pid in self.processes().items()},
            {name: metrics[name] for name in IDLE},
        )


async def _fault(client: HttpClient, request: SoakRequest) -> str | None:
    """What is wrong with the reply, if anything is."""
    try:
        response = await asyncio.wait_for(client.send(request.content), REPLY_SECONDS)
    except (OSError, BadResponseError, asyncio.TimeoutError) as error:
        return repr(error)
    if response.status != request.status:
        return f"status {response.status}, not {request.status}: {_gist(response.body)}"
    is_stream = response.headers.get("content-type", "").startswith("text/event-stream")
    if is_stream and not any(end in response.body[-20_000:] for end in STREAM_ENDS):
        return f"a stream ends with {_gist(response.body[-200:])}"
    return None


def _gist(body: bytes) -> str:
    """Without ids, so that faults of one kind are counted together."""
    return re.sub(r"[0-9a-f]{16,}", "…", body[:300].decode("utf-8", "replace"))


def slope(samples: Sequence[tuple[int, int]]) -> float:
    """MiB per 10,000 requests, by least squares."""
    mean_x = sum(x for x, _ in samples) / len(samples)
    mean_y = sum(y for _, y in samples) / len(samples)
    spread = sum((x - mean_x) ** 2 for x, _ in samples)
    bytes_per_request = sum((x - mean_x) * (y - mean_y) for x, y in samples) / spread
    return bytes_per_request * 10_000 / MIB


def run(settings: Settings, scale: Scale) -> Result:
    """The short version has a tiny model with the other's vocabulary, for more requests in its few seconds."""
    num_requests, num_warm_up = scale.pick(1_500, 100_000), scale.pick(600, 10_000)
    max_slope = MAX_SLOPE if scale is Scale.FULL else MAX_SHORT_SLOPE
    with tempfile.TemporaryDirectory() as folder:
        flags: tuple[str, ...] = FULL_FLAGS
        if scale is Scale.SHORT:
            flags = SHORT_FLAGS
            tiny = write_tiny_model(file_of(settings.model), Path(folder) / "tiny.gguf")
            settings = replace(settings, model=str(tiny))
        with settings.server(*FLAGS, *flags) as server:
            return asyncio.run(_measure(Soak(server), num_requests, num_warm_up, max_slope))


async def _measure(soak: Soak, num_requests: int, num_warm_up: int, max_slope: float) -> Result:
    client = HttpClient(soak.server.url)
    requests = soak_requests(client, seed=0)
    await _burst(client)
    await soak.send(client, islice(requests, num_warm_up), num_requests)
    client.close()
    before = await soak.settled()
    started = perf_counter()
    await soak.send(client, islice(requests, num_requests - num_warm_up), (num_requests - num_warm_up) // NUM_SAMPLES)
    seconds = perf_counter() - started
    client.close()
    after = await soak.settled()
    return _result(soak, before, after, (num_requests - num_warm_up) / seconds, max_slope)


async def _burst(client: HttpClient) -> None:
    """Makes pools of threads as large as they will ever be, which chance would take a while to do."""
    for path, body in (
        ("/tokenize", {"prompt": "many words " * 20_000}),
        ("/tokenize", {"prompt": "many words " * 500}),
        ("/tokenize", {"prompt": "a", "unknown": [[]] * 1000}),
        ("/generate", {"prompt": "many words " * 500, "max_new_tokens": 0}),
        ("/v1/completions", {"prompt": "a", "max_tokens": 110, "ignore_eos": True, "logprobs": 20}),
    ):
        content = client.encode(path, body)
        await asyncio.gather(*(client.send(content) for _ in range(4 * NUM_AT_ONCE)))


def _result(soak: Soak, before: Rest, after: Rest, rate: float, max_slope: float) -> Result:
    slopes = {name: slope(samples) for name, samples in soak.memory.items()}
    figures: dict[str, Figure] = {
        "requests": soak.num_done,
        "kinds": len(soak.kinds),
        "requests/s": round(rate, 1),
        "wrong replies": soak.faults.total(),
        **{f"memory of {name}, MiB per 10,000": round(value, 2) for name, value in slopes.items()},
        **_growth(before, after),
        "KV cache in use": after.in_use["kv_cache_usage_perc"],
    }
    passed = not soak.faults and not after.is_more_than(before) and max(slopes.values()) <= max_slope
    notes = [f"{count} × {fault}" for fault, count in soak.faults.most_common(MAX_NOTES)]
    if soak.faults:
        notes.append(f"the server's last words: {soak.server.log()[-1000:]}")
    return Result("R14", "soak", figures, passed, notes)


def _growth(before: Rest, after: Rest) -> dict[str, int]:
    growth: dict[str, int] = {}
    for name in before.held.keys() & after.held.keys():
        growth[f"open files of {name}"] = after.held[name].num_fds - before.held[name].num_fds
        growth[f"threads of {name}"] = after.held[name].num_threads - before.held[name].num_threads
    return dict(sorted(growth.items()))
