"""Anonymous memory of a server and of the processes it started, while something happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import perf_counter

from tests.chaos.servers import ServerUnderTest, child_pids

MIB = 2**20
SAMPLE_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of RssAnon and RssShmem at one time."""

    time: float  # of `time.perf_counter`
    server: int  # the process that answers HTTP
    family: int  # it and its descendants


@dataclass
class MemoryWatch:
    samples: list[Memory] = field(default_factory=list)

    def growth(self) -> float:
        """MiB of the highest sample above the first, of all processes together."""
        sizes = [sample.family for sample in self.samples]
        return (max(sizes) - sizes[0]) / MIB

    def slope(self, start: float, end: float) -> float:
        """MiB per minute between the means of the first and the last third of what was seen from `start` to `end`."""
        kept = [sample for sample in self.samples if start <= sample.time <= end]
        third = len(kept) // 3
        if third == 0:
            return 0.0
        first, last = kept[:third], kept[-third:]
        return (_mean_size(last) - _mean_size(first)) / MIB * 60 / (_mean_time(last) - _mean_time(first))


def memory_of(server: ServerUnderTest) -> Memory:
    """Of the processes that are there now; one may end meanwhile, and be missing."""
    sizes = [_rss_anon(server, pid) for pid in _family(server.pid)]
    return Memory(perf_counter(), sizes[0], sum(sizes))


def _rss_anon(server: ServerUnderTest, pid: int) -> int:
    try:
        return server.rss_anon(pid)
    except (OSError, LookupError):
        return 0


@asynccontextmanager
async def watch_memory(server: ServerUnderTest) -> AsyncIterator[MemoryWatch]:
    """Takes samples until the block is left."""
    watch = MemoryWatch([memory_of(server)])
    task = asyncio.create_task(_sample(server, watch))
    try:
        yield watch
    finally:
        task.cancel()
        watch.samples.append(memory_of(server))


async def _sample(server: ServerUnderTest, watch: MemoryWatch) -> None:
    while True:
        await asyncio.sleep(SAMPLE_SECONDS)
        watch.samples.append(memory_of(server))


def _family(pid: int) -> list[int]:
    return [pid, *(member for child in child_pids(pid) for member in _family(child))]


def _mean_time(samples: list[Memory]) -> float:
    return sum(sample.time for sample in samples) / len(samples)


def _mean_size(samples: list[Memory]) -> float:
    return sum(sample.family for sample in samples) / len(samples)
