from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from roseinfer.core.errors import CheckpointError, EngineError
from roseinfer.core.messages import AddRequest, Grammar, TokenOutput
from roseinfer.engine import child_process
from roseinfer.engine.client import EngineClient
from roseinfer.engine.frames import LoadModel, Vocabulary
from roseinfer.engine.process import EngineProcess, WatchOptions
from tests.engine import fake_child
from tests.engine.fake_child import DYING_TOKEN, FAULTY_TOKENS, HANGING_TOKEN, NAN_TOKEN, RAISING_TOKEN
from tests.fake_engine import Transcript, make_request
from tests.fake_grammars import hashed_grammar
from tests.full_engine import run_fully_alone

IMPATIENT = WatchOptions(hang_seconds=1.5, stale_seconds=0.6, tick_seconds=0.1)
# A group leader starts another process and is killed; both are waited for.
REAPING = """
import ctypes, os, signal, subprocess, sys, time
from roseinfer.engine.child_process import _reap_group

PR_SET_CHILD_SUBREAPER = 36
ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
code = "import os, subprocess; os.setpgid(0, 0); subprocess.Popen(['true']); print('started', flush=True); input()"
leader = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
leader.stdout.readline()
leader.kill()
leader.wait()
deadline = time.monotonic() + 20
while time.monotonic() < deadline:
    _reap_group(leader.pid)
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        sys.exit(0)
sys.exit("somebody is left")
"""
NEVER_FAULTY = dict.fromkeys(FAULTY_TOKENS, -100.0)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.write_text("sound")
    return path


def load(model: Path, max_running: int = 16) -> LoadModel:
    return LoadModel(
        path=os.fsencode(model),
        device="cpu",
        dtype="auto",
        weight_dtype="auto",
        kv_dtype="auto",
        num_threads=1,
        isa="auto",
        max_model_len=None,
        max_batch_tokens=64,
        max_running=max_running,
        kv_cache_memory=None,
        prefix_cache=True,
        fast=False,
        max_pending_grammars=8,
        grammar_seconds=2.0,
        log_level=50,
    )


class Vocabularies:
    """Counts how often it was asked for."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> Vocabulary:
        self.count += 1
        return Vocabulary([b"a"], [], [], fake_child.VOCAB_SIZE)


@contextmanager
def process(model: Path, read_vocabulary: Callable[[], Vocabulary] | None = None, **options: Any) -> Iterator[Any]:
    options = {"main": "tests.engine.fake_child", **options}
    host = EngineProcess(load(model), read_vocabulary or Vocabularies(), **options)
    try:
        yield host
    finally:
        host.close()


@contextmanager
def running(model: Path, **options: Any) -> Iterator[tuple[EngineClient, EngineProcess]]:
    with process(model, **options) as host:
        host.wait_until_loaded()
        with EngineClient(host) as client:
            yield client, host


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def mixed(count: int, max_tokens: int = 40) -> list[AddRequest]:
    """Of all kinds, none of which comes by a token that does harm."""
    kinds: list[dict[str, Any]] = [
        {},
        {"temperature": 0.9, "seed": 5, "top_k": 20},
        {"presence_penalty": 1.5, "frequency_penalty": 0.5, "repetition_penalty": 1.2},
        {"num_logprobs": 3, "num_prompt_logprobs": 1},
        {"temperature": 0.7, "choice": 1, "min_tokens": 20, "stop_token_ids": [3, 4]},
        {"grammar": hashed_grammar(max_tokens), "allowed_token_ids": list(range(40))},
    ]
    return [
        make_request(
            f"r{i}",
            [1 + i % 30, 2, 3, 4, 5, i % 7, 8, 9],
            max_tokens=max_tokens,
            logit_bias=NEVER_FAULTY,
            **kinds[i % len(kinds)],
        )
        for i in range(count)
    ]


class Running:
    """Requests under way, and what has come of them."""

    def __init__(self, client: EngineClient, requests: list[AddRequest]) -> None:
        self.requests = requests
        self.outputs: dict[str, list[TokenOutput]] = {request.request_id: [] for request in requests}
        self._num_left = len(requests)
        self._lock = threading.Lock()
        self._done = threading.Event()
        for request in requests:
            client.submit(request, self._on_output)

    def _on_output(self, output: TokenOutput) -> None:
        self.outputs[output.request_id].append(output)
        if output.finish_reason is not None:
            with self._lock:
                self._num_left -= 1
            if self._num_left == 0:
                self._done.set()

    @property
    def num_tokens(self) -> int:
        return sum(len(output.token_ids) for outputs in self.outputs.values() for output in outputs)

    def wait(self) -> None:
        assert self._done.wait(60)

    def end(self, request_id: str) -> TokenOutput:
        return self.outputs[request_id][-1]

    def check_exact(self) -> None:
        """All that came is what comes of each request alone."""
        for request in self.requests:
            transcript = Transcript()
            transcript.add(self.outputs[request.request_id])
            alone = run_fully_alone(request, vocab_size=fake_child.VOCAB_SIZE)
            assert transcript.result(request.request_id) == alone[:-1]
            firsts = [output for output in self.outputs[request.request_id] if output.prompt_logprobs is not None]
            assert [first.prompt_logprobs for first in firsts] == ([alone[-1]] if alone[-1] is not None else [])


def test_an_engine_in_a_process_gives_the_same_answers(model: Path) -> None:
    with running(model) as (client, host):
        assert (client.max_model_len, client.vocab_size, client.num_restarts) == (128, 50, 0)
        assert client.is_ready
        requests = Running(client, mixed(6))
        requests.wait()
        requests.check_exact()
        wait_until(lambda: client.stats().num_running == 0)
        pid = host.pid
        assert pid is not None
    assert is_gone(pid)


def test_killed_engines_lose_nothing(model: Path) -> None:
    with running(model) as (client, host):
        requests = Running(client, mixed(8, max_tokens=60))
        for num_tokens in (30, 150, 250):
            wait_until(lambda num_tokens=num_tokens: requests.num_tokens >= num_tokens)  # type: ignore[misc]
            os.kill(host.pid or 0, signal.SIGKILL)
            wait_until(lambda: not client.is_ready)
            wait_until(lambda: client.is_ready)
        requests.wait()
        requests.check_exact()
        assert client.num_restarts == 3


@pytest.mark.parametrize("count", [2, 6])  # launched ahead, and with edits in between
def test_a_lost_device_loses_no_request(model: Path, count: int) -> None:
    """It ends the process instead of the requests that were being computed."""
    with running(model, main="tests.engine.lost_device_child") as (client, _):
        requests = Running(client, mixed(count))
        requests.wait()
        requests.check_exact()
        assert client.num_restarts == 1


def test_requests_of_the_time_without_an_engine_are_taken(model: Path) -> None:
    with running(model) as (client, host):
        os.kill(host.pid or 0, signal.SIGKILL)
        wait_until(lambda: not client.is_ready)
        requests = Running(client, mixed(4))
        requests.wait()
        requests.check_exact()


def test_a_request_can_be_aborted_without_an_engine(model: Path) -> None:
    with running(model) as (client, host):
        os.kill(host.pid or 0, signal.SIGSTOP)
        requests = Running(client, mixed(2))
        os.kill(host.pid or 0, signal.SIGKILL)
        wait_until(lambda: not client.is_ready)
        client.abort("r0")
        requests.wait()
        assert (requests.end("r0").finish_reason, requests.end("r1").finish_reason) == ("abort", "length")


def test_an_engine_that_stands_still_is_found_and_replaced(model: Path) -> None:
    with running(model, options=IMPATIENT) as (client, host):
        requests = Running(client, mixed(6))
        wait_until(lambda: requests.num_tokens >= 20)
        hung = host.pid or 0
        os.kill(hung, signal.SIGSTOP)
        wait_until(lambda: not client.is_ready, 2)
        requests.wait()
        assert host.pid != hung
        assert is_gone(hung)
        requests.check_exact()


def test_an_idle_engine_shows_that_it_lives(model: Path) -> None:
    patient_for_beats = WatchOptions(hang_seconds=1.6, stale_seconds=1.4, tick_seconds=0.2)
    with running(model, options=patient_for_beats) as (client, host):
        pid, deadline = host.pid, time.monotonic() + 4
        while time.monotonic() < deadline:
            assert client.is_ready
            time.sleep(0.02)
        assert host.pid == pid


@pytest.mark.parametrize("token_id", [DYING_TOKEN, HANGING_TOKEN])
@pytest.mark.parametrize("is_late", [False, True])
def test_a_request_that_ends_engines_ends_alone(model: Path, token_id: int, is_late: bool) -> None:
    """At its prompt, or at a token that it generates."""
    with running(model, options=IMPATIENT) as (client, _):
        good = mixed(6)
        requests = Running(client, good[:3])
        fields: dict[str, Any] = {"logit_bias": {token_id: 100.0}, "min_tokens": 1} if is_late else {}
        poison = Running(client, [make_request("poison", [1, 2] if is_late else [1, token_id], **fields)])
        others = Running(client, good[3:])
        for each in (requests, others, poison):
            each.wait()
        assert poison.end("poison").finish_reason == "error"
        assert "the engine died of this request" in (poison.end("poison").error or "")
        requests.check_exact()
        others.check_exact()
        assert client.num_restarts == 3
        assert client.is_alive


@pytest.mark.parametrize("token_id", [RAISING_TOKEN, NAN_TOKEN])
def test_a_fault_that_can_be_caught_costs_no_engine(model: Path, token_id: int) -> None:
    with running(model) as (client, _):
        requests = Running(client, mixed(4))
        poison = Running(client, [make_request("poison", [1, token_id])])
        poison.wait()
        requests.wait()
        assert poison.end("poison").finish_reason == "error"
        requests.check_exact()
        assert client.num_restarts == 0


def test_an_engine_that_keeps_dying_is_given_up(model: Path) -> None:
    options = WatchOptions(max_deaths=3, backoff=(0.0,))
    deaths: list[str] = []
    with running(model, options=options) as (client, host):
        client.on_death = deaths.append
        for _ in range(2):
            os.kill(host.pid or 0, signal.SIGKILL)
            wait_until(lambda: not client.is_ready)
            wait_until(lambda: client.is_ready)
        requests = Running(client, mixed(2))
        os.kill(host.pid or 0, signal.SIGKILL)
        wait_until(lambda: bool(deaths))
        requests.wait()
        assert {requests.end(f"r{i}").error for i in range(2)} == set(deaths)
        assert deaths == ["the engine died 3 times within 60 seconds, at last: it ended with SIGKILL"]
        with pytest.raises(EngineError, match="died 3 times"):
            client.check_alive()


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="there are no files in memory here")
@pytest.mark.parametrize(
    ("sent", "memory_ran_out", "is_kept"),
    [
        (signal.SIGKILL, False, True),
        (signal.SIGKILL, True, False),
        (signal.SIGSEGV, False, False),
        (signal.SIGSTOP, False, False),
    ],
    ids=["killed", "out of memory", "crashed", "hung"],
)
def test_what_an_engine_leaves_of_its_cache_is_kept_if_it_was_sound(
    model: Path, monkeypatch: pytest.MonkeyPatch, sent: signal.Signals, memory_ran_out: bool, is_kept: bool
) -> None:
    num_kills = 3
    monkeypatch.setattr(child_process, "num_oom_kills", lambda: num_kills)
    with running(model, options=IMPATIENT) as (client, host):
        assert host._cache is not None
        host._cache.truncate(5)
        num_kills += memory_ran_out
        os.kill(host.pid or 0, sent)
        wait_until(lambda: client.num_restarts == 1 and client.is_ready)
        assert os.fstat(host._cache.fileno()).st_size == (5 if is_kept else 0)


@pytest.mark.parametrize(("row_seconds", "expected"), [(1000.0, [0.01, 0.02, 0.03, 0.03]), (0.0, [0.01] * 4)])
def test_only_deaths_in_a_row_are_waited_for_longer_and_longer(
    model: Path, monkeypatch: pytest.MonkeyPatch, row_seconds: float, expected: list[float]
) -> None:
    waits: list[float] = []
    options = WatchOptions(max_deaths=9, backoff=(0.01, 0.02, 0.03), row_seconds=row_seconds)
    with running(model, options=options) as (client, host):
        monkeypatch.setattr(host._closing, "wait", waits.append)
        for number in range(1, 5):
            os.kill(host.pid or 0, signal.SIGKILL)
            wait_until(lambda number=number: client.num_restarts == number and client.is_ready)  # type: ignore[misc]
    assert waits == expected


def test_what_an_engine_had_started_is_reaped(tmp_path: Path) -> None:
    """Where this process inherits the orphans, as the first one of a container does."""
    script = tmp_path / "first.py"
    script.write_text(REAPING)
    subprocess.run([sys.executable, script], check=True, timeout=30)


def test_a_model_that_cannot_be_loaded_is_told(tmp_path: Path) -> None:
    with process(tmp_path / "nothing") as host, pytest.raises(CheckpointError, match="nothing is not there"):
        host.wait_until_loaded()


def test_an_engine_that_dies_while_it_loads_is_told(model: Path) -> None:
    model.write_text("stillborn")
    with process(model) as host, pytest.raises(EngineError, match=r"died while it loaded the model.*exit status 4"):
        host.wait_until_loaded()


def test_an_engine_that_says_nothing_while_it_loads_is_given_up(model: Path) -> None:
    options = WatchOptions(load_seconds=0.5, tick_seconds=0.1)
    silent = process(model, main="tests.engine.silent_child", options=options)
    with silent as host, pytest.raises(EngineError, match=r"has not moved for 0\.5 seconds"):
        host.wait_until_loaded()


def test_an_engine_that_talks_nonsense_is_given_up(model: Path) -> None:
    babbling = process(model, main="tests.engine.babbling_child")
    with babbling as host, pytest.raises(EngineError, match="cannot be understood"):
        host.wait_until_loaded()


def test_another_model_does_not_go_on_with_the_requests(model: Path) -> None:
    with running(model) as (client, host):
        requests = Running(client, mixed(2, max_tokens=100))
        model.write_text("another")
        os.kill(host.pid or 0, signal.SIGKILL)
        requests.wait()
        assert "another is another model now" in (requests.end("r0").error or "")
        assert not client.is_alive


def test_a_model_that_is_away_for_a_moment_is_waited_for(model: Path) -> None:
    with running(model) as (client, host):
        requests = Running(client, mixed(2, max_tokens=100))
        model.rename(model.with_suffix(".away"))
        os.kill(host.pid or 0, signal.SIGKILL)
        wait_until(lambda: client.num_restarts >= 2)
        model.with_suffix(".away").rename(model)
        requests.wait()
        requests.check_exact()


def test_grammars_bring_the_vocabulary_once_to_each_engine(model: Path) -> None:
    vocabularies = Vocabularies()
    with running(model, read_vocabulary=vocabularies) as (client, host):
        plain = Running(client, mixed(2))
        plain.wait()
        assert vocabularies.count == 0
        for _ in range(2):
            Running(client, [make_request("g", [1], grammar=hashed_grammar(3))]).wait()
        os.kill(host.pid or 0, signal.SIGKILL)
        Running(client, [make_request("g", [1], grammar=hashed_grammar(3))]).wait()
        assert vocabularies.count == 1


def test_what_cannot_be_sent_ends_alone(model: Path) -> None:
    with running(model) as (client, _):
        requests = Running(client, mixed(2))
        bad = Running(client, [make_request("bad", [1], grammar=Grammar("regex", "\ud800"))])
        bad.wait()
        assert "cannot be sent" in (bad.end("bad").error or "")
        requests.wait()
        requests.check_exact()


def test_closing_ends_requests_and_process_at_once(model: Path) -> None:
    with running(model) as (client, host):
        requests = Running(client, [*mixed(2), make_request("hanging", [HANGING_TOKEN])])
        time.sleep(0.2)
        pid, start = host.pid or 0, time.monotonic()
        client.close()
        assert time.monotonic() - start < 2
        requests.wait()
        assert {requests.end(f"r{i}").finish_reason for i in range(2)} <= {"abort", "length"}
        assert requests.end("hanging").finish_reason == "abort"
        assert is_gone(pid)


def test_no_descriptor_and_no_thread_stays_behind(model: Path) -> None:
    def counts() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    with running(model):
        pass
    before = counts()
    with running(model) as (client, host):
        for _ in range(2):
            os.kill(host.pid or 0, signal.SIGKILL)
            wait_until(lambda: not client.is_ready)
            wait_until(lambda: client.is_ready)
    assert counts() == before
