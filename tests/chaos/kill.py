"""R1: `kill -9` of the engine under load, again and again. Every stream goes on exactly where it stood.

A server whose engine is no process of its own is killed as a whole, and loses its streams.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter

from tests.chaos.faulted_run import FaultedRun, run_with_fault
from tests.chaos.requests import mixed_requests
from tests.chaos.result import Figure, Result, Scale, Settings, percentile
from tests.chaos.servers import ServerUnderTest, kill

HAS_PEER = True
MAX_STALL = 1.5  # seconds, of 99 in 100 streams
RESTART_SECONDS = 60.0
APART_SECONDS = 13.0  # five deaths within a minute end the server by design
MAX_QUICK_KILLS = 4
LATEST = 0.9  # of the time that the requests take


@dataclass(frozen=True)
class Plan:
    num_kills: int
    num_streams: int
    max_tokens: int
    seed: int = 1


def run(settings: Settings, scale: Scale) -> Result:
    return measure(settings, Plan(scale.pick(3, 20), scale.pick(8, 32), scale.pick(48, 128)))


def measure(settings: Settings, plan: Plan) -> Result:
    rng = random.Random(plan.seed)
    if settings.is_peer:
        runs = [_kill_server(settings, plan, rng) for _ in range(plan.num_kills)]
        return _result(runs, num_restarts=0, survived=False)
    with settings.server() as server:
        first = server.engine_pid()
        engines = [first]
        runs = []
        for _ in range(plan.num_kills):
            runs.append(_kill_engine(server, plan, rng))
            engines.append(_next_engine(server, engines[-1]))
            server.wait_until_ready(RESTART_SECONDS)
            _pause(plan, runs[-1])
        return _result(runs, num_restarts=len(set(engines)) - 1, survived=server.exit_code() is None)


def _next_engine(server: ServerUnderTest, last: int) -> int:
    """The process that comes after `last`, which may have been killed behind the last answer."""
    deadline = perf_counter() + RESTART_SECONDS
    while perf_counter() < deadline:
        with suppress(LookupError):
            if (pid := server.engine_pid()) != last:
                return pid
        time.sleep(0.02)
    raise LookupError(f"no engine came after {last}")


def _kill_engine(server: ServerUnderTest, plan: Plan, rng: random.Random) -> FaultedRun:
    requests = mixed_requests(plan.num_streams, rng.randrange(2**31), max_tokens=plan.max_tokens)
    return run_with_fault(server, requests, rng.uniform(0, LATEST), lambda: kill(server.engine_pid()))


def _kill_server(settings: Settings, plan: Plan, rng: random.Random) -> FaultedRun:
    requests = mixed_requests(plan.num_streams, rng.randrange(2**31), max_tokens=plan.max_tokens, is_portable=True)
    with settings.server() as server:
        return run_with_fault(server, requests, rng.uniform(0, LATEST), lambda: kill(server.pid))


def _pause(plan: Plan, last: FaultedRun) -> None:
    if plan.num_kills > MAX_QUICK_KILLS:
        time.sleep(max(0.0, last.moment + APART_SECONDS - perf_counter()))


def _result(runs: Sequence[FaultedRun], *, num_restarts: int, survived: bool) -> Result:
    stalls = [stall for run in runs for stall in run.stalls]
    usual = [max(stream.gaps, default=0.0) for run in runs for stream in run.expected]
    num_streams, num_exact = sum(len(run.streams) for run in runs), sum(run.num_exact for run in runs)
    figures: dict[str, Figure] = {
        "kills": len(runs),
        "streams": num_streams,
        "live when killed": sum(len(run.live) for run in runs),
        "exact": num_exact,
        "client errors": sum(run.num_errors for run in runs),
        "stall p50, s": round(percentile(stalls, 50), 2),
        "stall p99, s": round(percentile(stalls, 99), 2),
        "stall max, s": round(max(stalls, default=0.0), 2),
        "longest gap without a kill, p99, s": round(percentile(usual, 99), 2),
        "restarts": num_restarts,
        "server survived": int(survived),
    }
    passed = survived and num_exact == num_streams and num_restarts == len(runs)
    passed = passed and percentile(stalls, 99) <= MAX_STALL
    return Result("R1", "`kill -9` of the engine under load", figures, passed, [d for r in runs for d in r.differences])
