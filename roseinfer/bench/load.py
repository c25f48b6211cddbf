"""Sends a workload's calls to a target, in a closed or an open loop, and keeps what the clock said."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from random import Random
from time import perf_counter

from roseinfer.bench.http_client import BadResponseError
from roseinfer.bench.metrics import RequestTiming, Run
from roseinfer.bench.processes import Resources
from roseinfer.bench.prompts import Prompt
from roseinfer.bench.protocols import Reply
from roseinfer.bench.targets import Call, Target
from roseinfer.bench.workloads import Workload, arrival_times
from roseinfer.core.errors import RoseinferError


@dataclass(slots=True)
class Sending:
    """A call on its way. In an open loop `start` is when it was due, so that a late client hides nothing."""

    call: Call
    start: float = 0.0
    failed_at: float = 0.0
    error: str | None = None

    async def run(self) -> None:
        try:
            await self.call.send()
        except (OSError, BadResponseError, RoseinferError) as error:
            self.error = str(error) or type(error).__name__
            self.failed_at = perf_counter()

    def timing(self) -> RequestTiming:
        failure = Reply(end=self.failed_at, chunk_times=[], error=self.error)
        reply = self.call.reply() if self.error is None else failure
        return RequestTiming(start=self.start, **{field.name: getattr(reply, field.name) for field in fields(Reply)})


async def run_workload(target: Target, workload: Workload, prompts: Sequence[Prompt], rng: Random) -> Run:
    """Everything that can be done before or after the requests is done then."""
    sendings = [Sending(target.call(prompt, workload.output_len)) for prompt in prompts]
    is_open_loop = workload.rate is not None
    await target.open(0 if is_open_loop else min(workload.concurrency, len(sendings)))
    before, client_before = target.resources(), time.thread_time()  # the engine's threads may be in this process
    if is_open_loop:
        await _open_loop(sendings, arrival_times(workload, rng))
    else:
        await _closed_loop(sendings, workload.concurrency)
    client_cpu = time.thread_time() - client_before
    after = target.resources()
    return Run([sending.timing() for sending in sendings], client_cpu, _used(before, after))


async def _closed_loop(sendings: Sequence[Sending], concurrency: int) -> None:
    """`concurrency` callers share the calls; each sends its next one when the last is answered."""
    remaining = iter(sendings)
    await asyncio.gather(*(_caller(remaining) for _ in range(min(concurrency, len(sendings)))))


async def _caller(remaining: Iterator[Sending]) -> None:
    for sending in remaining:
        sending.start = perf_counter()
        await sending.run()


async def _open_loop(sendings: Sequence[Sending], due_times: Sequence[float]) -> None:
    start = perf_counter()
    await asyncio.gather(*(_run_at(sending, start + due) for sending, due in zip(sendings, due_times, strict=True)))


async def _run_at(sending: Sending, due: float) -> None:
    await asyncio.sleep(due - perf_counter())
    sending.start = due
    await sending.run()


def _used(before: Resources | None, after: Resources | None) -> Resources | None:
    """CPU time of the run alone; memory at its end."""
    if before is None or after is None:
        return None
    return Resources(after.cpu_seconds - before.cpu_seconds, after.rss_bytes, after.peak_rss_bytes)
