"""R3: one request that breaks the engine, among many that are well. They are answered exactly, it gets one error.

What it breaks is the process (an abort, a segmentation fault, an exit, an endless loop) or its own step (an exception,
logits that are not numbers), while its prompt is computed, in the middle of its answer, or when it is sampled from.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tests.chaos.client import Stream, ask_all
from tests.chaos.faulted_run import ask_undisturbed, difference
from tests.chaos.faulty_child import FAULTS, HANG_VARIABLE, Fault
from tests.chaos.requests import ChaosRequest, mixed_requests
from tests.chaos.result import Figure, Result, Scale, Settings
from tests.chaos.servers import POLL_SECONDS, ServerUnderTest, engine_pids

MAX_DEATHS = 4  # of engines, of one request
READY_SECONDS = 30.0
FAULTY = "tests.chaos.faulty_child"

SHORT_FAULTS = (
    Fault("abort", "prefill"),
    Fault("segfault", "decode"),
    Fault("spin", "sampling"),
    Fault("raise", "decode"),
    Fault("nan", "prefill"),
)


@dataclass(frozen=True)
class Plan:
    """`hang_seconds`: a patience of the server's watch that is not its own."""

    faults: Sequence[Fault]
    num_good: int
    max_tokens: int
    hang_seconds: float | None = None


@dataclass(frozen=True)
class Poisoning:
    """What a fault did to the good requests and to its own, and how many engines died of it."""

    fault: Fault
    differences: list[str]
    poisoned: Stream
    num_deaths: int
    survived: bool

    @property
    def is_contained(self) -> bool:
        limit = MAX_DEATHS if self.fault.is_fatal else 0
        return self.survived and not self.differences and self.is_told and self.num_deaths <= limit

    @property
    def is_told(self) -> bool:
        """Whether the poisoned request got its error: a status, or an event where the stream had begun."""
        error = self.poisoned.server_error
        return self.poisoned.status in (200, 500) and error is not None and error["type"] == "server_error"


def run(settings: Settings, scale: Scale) -> Result:
    if scale is Scale.FULL:
        faults = [fault for fault in FAULTS if fault.action != "slow"]
        return measure(settings, Plan(faults, num_good=31, max_tokens=96))
    return measure(settings, Plan(SHORT_FAULTS, num_good=7, max_tokens=40, hang_seconds=2.0))


def measure(settings: Settings, plan: Plan) -> Result:
    mild = [fault for fault in plan.faults if not fault.is_fatal]
    with _server(settings, plan) as server:
        poisonings = [_poison(server, plan, fault) for fault in mild]
    for fault in plan.faults:
        if fault.is_fatal:  # a server of its own: five deaths within a minute end it by design
            with _server(settings, plan) as server:
                poisonings.append(_poison(server, plan, fault))
    return _result(poisonings, plan.num_good)


def _server(settings: Settings, plan: Plan) -> ServerUnderTest:
    env = {} if plan.hang_seconds is None else {HANG_VARIABLE: str(plan.hang_seconds)}
    return settings.server(main=FAULTY, env=env)


def _poison(server: ServerUnderTest, plan: Plan, fault: Fault) -> Poisoning:
    good = mixed_requests(plan.num_good, seed=fault.token_id, max_tokens=plan.max_tokens)
    expected = ask_undisturbed(server, good)
    middle = len(good) // 2
    requests = [*good[:middle], poisoned_request(fault), *good[middle:]]
    with _counting_engines(server) as pids:
        streams = asyncio.run(ask_all(server.url, requests))
        server.wait_until_ready(READY_SECONDS)
    poisoned = streams.pop(middle)
    triples = zip(good, expected, streams, strict=True)
    return Poisoning(
        fault,
        [text for triple in triples if (text := difference(*triple))],
        poisoned,
        num_deaths=len(pids) - 1,
        survived=server.exit_code() is None,
    )


def poisoned_request(fault: Fault) -> ChaosRequest:
    """Streamed where the fault comes late, so that its error has to be an event."""
    prompt = [fault.token_id, *range(1000, 1008)]
    body = {"prompt": prompt, "max_tokens": 40, "temperature": 0, "ignore_eos": True}
    return ChaosRequest("/v1/completions", {**body, "stream": fault.stage != "prefill"})


@contextmanager
def _counting_engines(server: ServerUnderTest) -> Iterator[set[int]]:
    """The processes of all engines that there are meanwhile."""
    pids = {server.engine_pid()}
    is_over = threading.Event()

    def look() -> None:
        while not is_over.wait(POLL_SECONDS):
            pids.update(engine_pids(server.pid))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield pids
    finally:
        is_over.set()
        looking.join()


def _result(poisonings: Sequence[Poisoning], num_good: int) -> Result:
    num_differing = sum(len(poisoning.differences) for poisoning in poisonings)
    figures: dict[str, Figure] = {
        "poisons": len(poisonings),
        "good requests": num_good * len(poisonings),
        "exact": num_good * len(poisonings) - num_differing,
        "poisons with one error": sum(poisoning.is_told for poisoning in poisonings),
        "engine deaths of one poison, at most": max(poisoning.num_deaths for poisoning in poisonings),
        "engine deaths of exceptions and NaN": sum(p.num_deaths for p in poisonings if not p.fault.is_fatal),
        "servers that survived": sum(poisoning.survived for poisoning in poisonings),
    }
    return Result(
        "R3",
        "a poisoned request among good ones",
        figures,
        all(poisoning.is_contained for poisoning in poisonings),
        [note for poisoning in poisonings for note in _notes(poisoning)],
    )


def _notes(poisoning: Poisoning) -> Iterator[str]:
    if not poisoning.is_contained:
        name = f"{poisoning.fault.action} in {poisoning.fault.stage}"
        yield f"{name}: {poisoning.num_deaths} deaths, the poisoned request got {poisoning.poisoned.error}"
        yield from (f"{name}: {text}" for text in poisoning.differences)
