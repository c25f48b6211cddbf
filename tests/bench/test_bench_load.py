"""Closed and open loops: what is sent when, how many at once, and what becomes of failures."""

from __future__ import annotations

import asyncio
from random import Random
from time import perf_counter
from typing import Any

import pytest

from roseinfer.bench.load import run_workload
from roseinfer.bench.metrics import Run
from roseinfer.bench.processes import Resources
from roseinfer.bench.prompts import IdPrompts, Prompt
from roseinfer.bench.protocols import Reply
from roseinfer.bench.workloads import Workload, arrival_times
from roseinfer.core.errors import OverloadedError

PROMPTS = IdPrompts(range(100), source="x")


class FakeCall:
    def __init__(self, target: FakeTarget, prompt: Prompt, output_len: int) -> None:
        self.target = target
        self.prompt = prompt
        self.output_len = output_len
        self.sent_at = 0.0
        self.end = 0.0

    async def send(self) -> None:
        target = self.target
        self.sent_at = perf_counter()
        target.sent.append(self)
        if target.failure is not None and len(target.sent) % 2 == 0:
            raise target.failure
        target.num_running += 1
        target.max_running = max(target.max_running, target.num_running)
        await asyncio.sleep(target.seconds)
        target.num_running -= 1
        self.end = perf_counter()

    def reply(self) -> Reply:
        assert self.target.num_running == 0, "read while others are being measured"
        return Reply(end=self.end, chunk_times=[self.end], num_input_tokens=3, num_output_tokens=self.output_len)


class FakeTarget:
    """Each call takes `seconds`; every second one fails with `failure`, if there is one."""

    def __init__(self, seconds: float = 0.0, failure: Exception | None = None) -> None:
        self.prompts = PROMPTS
        self.seconds = seconds
        self.failure = failure
        self.sent: list[FakeCall] = []
        self.num_running = 0
        self.max_running = 0
        self.num_opened = -1
        self.cpu_seconds = 7.0

    def call(self, prompt: Prompt, output_len: int) -> FakeCall:
        return FakeCall(self, prompt, output_len)

    async def open(self, num_connections: int) -> None:
        self.num_opened = num_connections

    def resources(self) -> Resources:
        self.cpu_seconds += 0.25
        return Resources(self.cpu_seconds, 100, 200)

    def facts(self) -> dict[str, Any]:
        return {}


def run(target: FakeTarget, workload: Workload, seed: int = 0) -> Run:
    async def go() -> Run:
        return await run_workload(target, workload, await PROMPTS.make(workload, Random(seed)), Random(seed))

    return asyncio.run(go())


@pytest.mark.parametrize(("concurrency", "at_once"), [(1, 1), (3, 3), (50, 7)])
def test_a_closed_loop_keeps_so_many_on_the_way(concurrency: int, at_once: int) -> None:
    target = FakeTarget(0.005)
    measured = run(target, Workload(name="x", num_requests=7, concurrency=concurrency, output_len=5))
    assert (target.max_running, target.num_opened) == (at_once, at_once)
    assert len(measured.complete) == len({str(call.prompt) for call in target.sent}) == 7
    assert all(request.num_output_tokens == 5 for request in measured.complete)
    assert all(request.e2e >= 0.005 for request in measured.complete)


def test_a_caller_asks_again_when_it_has_its_answer() -> None:
    target = FakeTarget(0.01)
    measured = run(target, Workload(name="x", num_requests=4, concurrency=2)).requests
    assert min(r.start for r in measured[2:]) >= min(r.end for r in measured[:2])
    assert sorted(r.start for r in measured) == [r.start for r in measured]


def test_an_open_loop_waits_for_nobody() -> None:
    """Forty requests come within a fraction of the time that one takes."""
    target = FakeTarget(0.4)
    workload = Workload(name="x", num_requests=40, rate=400.0)
    measured = run(target, workload)
    assert target.max_running == 40
    assert target.num_opened == 0
    starts = [request.start - measured.requests[0].start for request in measured.requests]
    assert starts == pytest.approx(arrival_times(workload, Random(0)), abs=1e-6)


def test_an_open_loop_is_timed_from_when_a_request_was_due() -> None:
    target = FakeTarget()
    measured = run(target, Workload(name="x", num_requests=20, rate=1000.0))
    lateness = [call.sent_at - request.start for call, request in zip(target.sent, measured.requests, strict=True)]
    assert min(lateness) >= 0
    assert all(request.e2e >= late for request, late in zip(measured.requests, lateness, strict=True))


@pytest.mark.parametrize("failure", [OverloadedError("queue is full"), ConnectionResetError("gone"), TimeoutError()])
def test_failures_are_kept_and_the_rest_goes_on(failure: Exception) -> None:
    measured = run(FakeTarget(0.001, failure), Workload(name="x", num_requests=6, concurrency=2))
    assert measured.errors == [str(failure) or "TimeoutError"] * 3
    assert len(measured.complete) == 3
    assert all(request.end >= request.start > 0 for request in measured.requests)


def test_a_mistake_of_ours_is_no_failure_of_the_server() -> None:
    with pytest.raises(ZeroDivisionError):
        run(FakeTarget(0.001, ZeroDivisionError()), Workload(name="x", num_requests=2))


def test_resources_of_the_run_alone() -> None:
    assert run(FakeTarget(), Workload(name="x")).server == Resources(0.25, 100, 200)
