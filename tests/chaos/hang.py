"""R2: an engine that hangs is found and replaced, its streams go on exactly. A step that takes long is no hang."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

from tests.chaos.client import ask
from tests.chaos.faulted_run import FaultedRun, run_with_fault
from tests.chaos.faulty_child import HANG_VARIABLE, Fault
from tests.chaos.requests import ChaosRequest, mixed_requests
from tests.chaos.result import Figure, Result, Scale, Settings
from tests.chaos.servers import POLL_SECONDS, ServerUnderTest, is_engine

MAX_FOUND = 10.0  # seconds until the hang is found
MAX_NOT_READY = 2.0  # and from then until the server says that it is not ready
GIVE_UP_SECONDS = 60.0
LONG_STEP_SECONDS = 900.0  # a step takes a minute on two cores; on a busy machine it may be many
APART_SECONDS = 13.0  # five deaths within a minute end the server by design
MAX_QUICK_HANGS = 4
SHORT_PATIENCE = 2.0  # of the watch, in seconds, where nobody wants to wait for its own
LATEST = 0.7  # of the time that the requests take

FAULTY = "tests.chaos.faulty_child"


@dataclass(frozen=True)
class Plan:
    """`hang_seconds`: a patience of the server's watch that is not its own; `long_prompts` are computed in one step."""

    num_hangs: int
    num_streams: int
    max_tokens: int
    hang_seconds: float | None = None
    num_long_prompts: int = 4
    long_prompt_tokens: int = 8000


class Hang:
    """Stops the engine when called, and looks on until there is another one that is ready."""

    def __init__(self, server: ServerUnderTest) -> None:
        self.found_seconds = GIVE_UP_SECONDS
        self.not_ready_seconds = GIVE_UP_SECONDS
        self._server = server

    def __call__(self) -> None:
        pid, started = self._server.engine_pid(), perf_counter()
        os.kill(pid, signal.SIGSTOP)
        is_gone = is_back = False
        while not (is_gone and is_back) and (seconds := perf_counter() - started) < GIVE_UP_SECONDS:
            if not is_gone and not is_engine(pid):
                is_gone, self.found_seconds = True, seconds
            is_back = self._server.is_ready()
            if not is_back:
                self.not_ready_seconds = min(self.not_ready_seconds, seconds)
            time.sleep(POLL_SECONDS)


@dataclass(frozen=True)
class LongStep:
    seconds: float
    num_alarms: int  # moments at which the server was not ready, and engines that were replaced
    error: str | None


def run(settings: Settings, scale: Scale) -> Result:
    if scale is Scale.FULL:
        return measure(settings, Plan(num_hangs=10, num_streams=32, max_tokens=128))
    return measure(settings, Plan(num_hangs=1, num_streams=8, max_tokens=48, hang_seconds=SHORT_PATIENCE))


def measure(settings: Settings, plan: Plan) -> Result:
    with _server(settings, plan) as server:
        hangs, runs = _hang_again_and_again(server, plan)
        survived = server.exit_code() is None
    long_step = _slow_step(settings, plan) if plan.hang_seconds else _big_step(settings, plan)
    return _result(hangs, runs, long_step, survived)


def _server(settings: Settings, plan: Plan) -> ServerUnderTest:
    if plan.hang_seconds is None:
        return settings.server()
    return settings.server(main=FAULTY, env={HANG_VARIABLE: str(plan.hang_seconds)})


def _hang_again_and_again(server: ServerUnderTest, plan: Plan) -> tuple[list[Hang], list[FaultedRun]]:
    rng = random.Random(2)
    hangs, runs = [], []
    for _ in range(plan.num_hangs):
        hangs.append(Hang(server))
        requests = mixed_requests(plan.num_streams, rng.randrange(2**31), max_tokens=plan.max_tokens)
        runs.append(run_with_fault(server, requests, rng.uniform(0, LATEST), hangs[-1]))
        if plan.num_hangs > MAX_QUICK_HANGS:
            time.sleep(max(0.0, runs[-1].moment + APART_SECONDS - perf_counter()))
    return hangs, runs


# -- steps that take long ---------------------------------------------------------------------------------------------


def _slow_step(settings: Settings, plan: Plan) -> LongStep:
    """One that takes its time because a fault makes it compute the same again and again."""
    with _server(settings, plan) as server:
        return _watch_step(server, [[Fault("slow", "prefill").token_id] * 8])


def _big_step(settings: Settings, plan: Plan) -> LongStep:
    """One that has very much to compute, for one thread."""
    rng = random.Random(3)
    prompts = [[rng.randrange(100, 1000) for _ in range(plan.long_prompt_tokens)] for _ in range(plan.num_long_prompts)]
    sizes = ["--max-batch-tokens", str(plan.num_long_prompts * plan.long_prompt_tokens), "--kv-cache-memory", "2GiB"]
    with settings.server(*sizes, "--threads", "1", "--no-prefix-cache") as server:
        return _watch_step(server, prompts)


def _watch_step(server: ServerUnderTest, prompts: list[list[int]]) -> LongStep:
    """The first prompt may have a step for itself, all others share one: what is between two chunks is that step."""
    pid = server.engine_pid()
    body = {"prompt": prompts, "max_tokens": 2, "temperature": 0, "stream": True}
    with _counting_alarms(server) as alarms:
        request = ChaosRequest("/v1/completions", body)
        stream = asyncio.run(ask(server.url, request, seconds=LONG_STEP_SECONDS))
    is_same = server.engine_pid() == pid
    return LongStep(max(stream.gaps, default=0.0), len(alarms) + (not is_same), stream.error)


@contextmanager
def _counting_alarms(server: ServerUnderTest) -> Iterator[list[float]]:
    """The moments at which the server was not ready."""
    alarms: list[float] = []
    is_over = threading.Event()

    def look() -> None:
        while not is_over.wait(0.1):
            if not server.is_ready():
                alarms.append(perf_counter())

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield alarms
    finally:
        is_over.set()
        looking.join()


def _result(hangs: Sequence[Hang], runs: Sequence[FaultedRun], long_step: LongStep, survived: bool) -> Result:
    num_streams, num_exact = sum(len(run.streams) for run in runs), sum(run.num_exact for run in runs)
    found = max(hang.found_seconds for hang in hangs)
    late = max(hang.not_ready_seconds - hang.found_seconds for hang in hangs)
    figures: dict[str, Figure] = {
        "hangs": len(hangs),
        "found after at most, s": round(found, 2),
        "not ready after at most, s": round(max(hang.not_ready_seconds for hang in hangs), 2),
        "streams": num_streams,
        "live when it hung": sum(len(run.live) for run in runs),
        "exact": num_exact,
        "client errors": sum(run.num_errors for run in runs),
        "longest step, s": round(long_step.seconds, 1),
        "false alarms in it": long_step.num_alarms,
        "server survived": int(survived),
    }
    passed = survived and num_exact == num_streams and found <= MAX_FOUND and late <= MAX_NOT_READY
    passed = passed and long_step.num_alarms == 0 and long_step.error is None
    notes = [difference for run in runs for difference in run.differences] + [long_step.error or ""]
    return Result("R2", "an engine that hangs", figures, passed, [note for note in notes if note])
