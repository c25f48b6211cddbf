"""R13: a server that is told to stop lets its requests finish and leaves nothing behind; nor does a killed one."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

from tests.chaos.client import ask_all
from tests.chaos.faulted_run import FaultedRun, run_with_fault
from tests.chaos.requests import ChaosRequest, mixed_requests
from tests.chaos.result import Figure, Result, Scale, Settings
from tests.chaos.servers import POLL_SECONDS, ServerUnderTest, command_line, descendants

HAS_PEER = True
MAX_QUICK_STOP = 1.0  # seconds from a second SIGTERM to the end
MAX_ORPHAN = 2.0  # seconds for which an engine may outlive its server
GIVE_UP_SECONDS = 40.0
EARLY = 0.4  # of the time that the requests take
BETWEEN_SIGNALS = 0.3
TRIAL_START_SECONDS = 0.7  # until its process is at work
TRIAL_MARK = "trial_process"  # in the command line of the process that tries grammars out

# An intersection so large that its trial never ends; it is stopped after two seconds.
ENDLESS_GRAMMAR = "start: T\nT: " + " & ".join(f"/(?s:.*)w{i}z(?s:.*)/" for i in range(40))

Family = dict[int, str]  # command lines by process


@dataclass(frozen=True)
class Drain:
    """SIGTERM in the middle of a run. `statuses`: what the server said of its readiness from then on, 0 = nothing."""

    run: FaultedRun
    exit_code: int
    seconds: float
    statuses: list[int]
    leftovers: list[str]

    @property
    def is_clean(self) -> bool:
        return self.exit_code == 0 and not self.leftovers and 200 not in self.statuses[1:]


@dataclass(frozen=True)
class Death:
    """A server that ends with requests running: `seconds` from the signal to the end of its last process."""

    title: str
    seconds: float
    num_cut: int  # requests that were running


def run(settings: Settings, scale: Scale) -> Result:
    num_streams, max_tokens = scale.pick(8, 32), scale.pick(48, 128)
    requests = mixed_requests(num_streams, 4, max_tokens=max_tokens, is_portable=settings.is_peer)
    drain = _drain(settings, requests)
    delay = EARLY * (drain.run.expected[0].ended_at - drain.run.expected[0].started_at)
    deaths = [_die(settings, title, requests, delay) for title in FAULTS if not settings.is_peer or title in FOR_PEERS]
    return _result(drain, deaths)


# -- SIGTERM, once ----------------------------------------------------------------------------------------------------


def _drain(settings: Settings, requests: Sequence[ChaosRequest]) -> Drain:
    with settings.server() as server:
        family = family_of(server)
        statuses: list[int] = []

        def stop() -> None:
            server.send(signal.SIGTERM)
            deadline = time.monotonic() + GIVE_UP_SECONDS
            while server.exit_code() is None and time.monotonic() < deadline:
                statuses.append(server.status(server.ready_path))
                time.sleep(POLL_SECONDS)
            if server.exit_code() is None:
                server.send(signal.SIGKILL)

        run = run_with_fault(server, requests, EARLY, stop)
        exit_code = server.wait()
        seconds = perf_counter() - run.moment
        leftovers = list(living(family).values()) + ([] if is_free(server.port) else [f"port {server.port}"])
        return Drain(run, exit_code, seconds, statuses, leftovers)


def is_free(port: int) -> bool:
    """Whether another server could have it at once."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


# -- ends with requests running ---------------------------------------------------------------------------------------


def _stop_twice(server: ServerUnderTest) -> None:
    server.send(signal.SIGTERM)
    time.sleep(BETWEEN_SIGNALS)
    server.send(signal.SIGTERM)


def _kill(server: ServerUnderTest) -> None:
    server.send(signal.SIGKILL)


def _kill_while_hanging(server: ServerUnderTest) -> None:
    os.kill(server.engine_pid(), signal.SIGSTOP)
    server.send(signal.SIGKILL)


SECOND_SIGTERM = "second SIGTERM"
IN_TRIAL = "SIGKILL in a grammar's trial"
FAULTS: dict[str, Callable[[ServerUnderTest], None]] = {
    SECOND_SIGTERM: _stop_twice,
    "SIGKILL": _kill,
    "SIGKILL, engine hanging": _kill_while_hanging,
    IN_TRIAL: _kill,
}
FOR_PEERS = (SECOND_SIGTERM, "SIGKILL")


def _die(settings: Settings, title: str, requests: Sequence[ChaosRequest], delay: float) -> Death:
    with settings.server() as server:
        if title == IN_TRIAL:
            requests = [endless_request(), *(request for request in requests if not has_grammar(request))]
        return asyncio.run(_ask_and_die(server, title, requests, delay))


async def _ask_and_die(server: ServerUnderTest, title: str, requests: Sequence[ChaosRequest], delay: float) -> Death:
    asking = asyncio.create_task(ask_all(server.url, requests))
    await (asyncio.to_thread(_wait_for_trial, server) if title == IN_TRIAL else asyncio.sleep(delay))
    dying = asyncio.to_thread(_seconds_to_die, server, FAULTS[title])
    streams, seconds = await asyncio.gather(asking, dying)
    return Death(title, seconds, sum(stream.error is not None for stream in streams))


def _wait_for_trial(server: ServerUnderTest) -> None:
    deadline = time.monotonic() + GIVE_UP_SECONDS
    while not any(TRIAL_MARK in line for line in family_of(server).values()):
        if time.monotonic() > deadline:
            raise TimeoutError("no grammar is tried out")
        time.sleep(POLL_SECONDS)
    time.sleep(TRIAL_START_SECONDS)


def _seconds_to_die(server: ServerUnderTest, fault: Callable[[ServerUnderTest], None]) -> float:
    """From the fault's last signal on, until nobody of the server's family is left."""
    family = family_of(server)
    fault(server)
    started = perf_counter()
    while (living(family) or server.exit_code() is None) and perf_counter() - started < GIVE_UP_SECONDS:
        time.sleep(POLL_SECONDS)
    return perf_counter() - started


def has_grammar(request: ChaosRequest) -> bool:
    return "response_format" in request.body


def endless_request() -> ChaosRequest:
    body = {"prompt": "x", "stream": True, "structured_outputs": {"grammar": ENDLESS_GRAMMAR}}
    return ChaosRequest("/v1/completions", body)


# -- processes --------------------------------------------------------------------------------------------------------


def family_of(server: ServerUnderTest) -> Family:
    """The processes that the server has started, and those that they have."""
    return {pid: line for pid in descendants(server.pid) if (line := command_line(pid))}


def living(family: Family) -> Family:
    """Those of them that still run; a number may be another process's by now."""
    return {pid: line for pid, line in family.items() if command_line(pid) == line}


# -- what it comes to -------------------------------------------------------------------------------------------------


def _result(drain: Drain, deaths: Sequence[Death]) -> Result:
    run = drain.run
    figures: dict[str, Figure] = {
        "streams": len(run.streams),
        "live at SIGTERM": len(run.live),
        "finished": len(run.streams) - run.num_errors,
        "exact": run.num_exact,
        "exit code": drain.exit_code,
        "end after SIGTERM, s": round(drain.seconds, 2),
        "left behind": len(drain.leftovers),
        **{f"end after {death.title}, s": round(death.seconds, 2) for death in deaths},
    }
    limits = {SECOND_SIGTERM: MAX_QUICK_STOP}
    is_quick = all(death.seconds <= limits.get(death.title, MAX_ORPHAN) and death.num_cut for death in deaths)
    passed = drain.is_clean and run.num_exact == len(run.streams) and is_quick
    return Result("R13", "stopping under load", figures, passed, [*run.differences, *drain.leftovers])
