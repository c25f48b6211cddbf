"""alone == batched == chunked == cached == preempted == resubmitted, token for token.

The fake program hashes what it reads back from the KV memory, so any scheduling or caching error shows here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from roseinfer.core.messages import AddRequest
from tests.fake_engine import Transcript, make_engine, make_request, make_scheduler, run_alone, run_to_end
from tests.fake_program import FakeProgram

SHARED = [7, 3, 9, 1, 4, 4, 8, 2, 6, 5, 11, 13, 12, 10, 15, 14, 17, 16, 19, 18]  # five blocks of four


def workload() -> list[AddRequest]:
    """Shared and own prefixes, prompts at and beside block borders, greedy and sampled, with and without stops."""
    requests = []
    for i in range(12):
        prompt = (SHARED if i % 3 else SHARED[::-1])[: 3 + 2 * i] + [20 + i] * (i % 5)
        requests.append(
            make_request(
                f"r{i}",
                prompt,
                max_tokens=4 + 3 * i,
                temperature=0.0 if i % 2 else 1.0,
                seed=i,
                choice=i % 3,
                stop_token_ids=[i, i + 20],
                num_logprobs=i % 4 - 1,
            )
        )
    return requests


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="batched"),
        pytest.param({"max_running": 1}, id="one-by-one"),
        pytest.param({"max_batch_tokens": 1, "max_running": 12}, id="one-token-per-step"),
        pytest.param({"max_chunk_tokens": 3}, id="chunks-beside-borders"),
        pytest.param({"max_chunk_tokens": 4}, id="chunks-at-borders"),
        pytest.param({"max_batch_tokens": 13, "max_running": 12}, id="mixed-chunks"),
        pytest.param({"use_prefix_cache": False}, id="uncached"),
        pytest.param({"num_blocks": 19, "max_running": 12}, id="preempted"),
        pytest.param({"num_blocks": 19, "max_running": 12, "use_prefix_cache": False}, id="preempted-uncached"),
        pytest.param({"num_blocks": 19, "max_running": 12, "max_chunk_tokens": 5}, id="preempted-chunked"),
    ],
)
def test_results_do_not_depend_on_the_schedule(options: dict[str, Any]) -> None:
    scheduler = make_scheduler(**{"max_model_len": 70, **options})
    engine = make_engine(scheduler)
    for request in workload():
        engine.add(request)
    transcript = run_to_end(engine)
    for request in workload():
        assert transcript.result(request.request_id) == run_alone(request, max_model_len=70)
    assert (engine.stats().num_preemptions > 0) == ("num_blocks" in options)
    scheduler.check()


def test_a_second_round_is_answered_from_the_cache() -> None:
    engine = make_engine()
    request = make_request("a", SHARED, max_tokens=20)
    num_tokens = []
    for _ in range(2):
        before = engine._program.num_tokens
        engine.add(request)
        transcript = run_to_end(engine)
        assert transcript.result("a") == run_alone(request)
        num_tokens.append(engine._program.num_tokens - before)
    # The 20 prompt tokens fill five blocks; the last is left out, since its logits are wanted.
    assert transcript.ends["a"].num_cached_tokens == 16
    assert num_tokens == [20 + 19, 4 + 19]


@pytest.mark.parametrize("num_accepted", [0, 1, 5, 11])
def test_a_resubmitted_request_goes_on_where_it_stopped(num_accepted: int) -> None:
    request = make_request("a", SHARED, max_tokens=12, temperature=1.0, seed=5)
    token_ids = run_alone(request)[0]
    assert len(token_ids) == 12
    again = msgspec.structs.replace(request, output_ids=token_ids[:num_accepted])
    assert run_alone(again)[0] == token_ids[num_accepted:]


@pytest.mark.parametrize("breakage", ["block_tables", "positions"])
def test_the_fake_program_notices_a_wrong_read(breakage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above are worth what this one shows: a single wrong block or slot changes the tokens."""
    request = make_request("a", SHARED, max_tokens=12)
    right = run_alone(request)
    forward: Callable[..., None] = FakeProgram._slots

    def wrong_slots(self: FakeProgram, block_table: Any, num_tokens: int) -> Any:
        table = block_table.copy()
        if num_tokens > 24 and breakage == "block_tables":
            table[2] = 200
        slots = forward(self, table, num_tokens)
        if num_tokens > 24 and breakage == "positions":
            slots[[1, 2]] = slots[[2, 1]]
        return slots

    monkeypatch.setattr(FakeProgram, "_slots", wrong_slots)
    assert run_alone(request) != right


PROMPTS = st.tuples(
    st.sampled_from([SHARED, SHARED[:9] + SHARED, [1] * 30]),
    st.integers(0, 24),
    st.lists(st.integers(0, 49), max_size=6),
).map(lambda parts: [*parts[0][: parts[1]], *parts[2]] or [0])


class EngineMachine(RuleBasedStateMachine):
    """Requests come, go and are aborted while steps run, in pools from roomy to barely enough."""

    @initialize(
        num_blocks=st.integers(1, 40),
        block_size=st.sampled_from([1, 2, 4, 8]),
        max_batch_tokens=st.integers(1, 40),
        max_running=st.integers(1, 6),
        max_chunk_tokens=st.none() | st.integers(1, 20),
        use_prefix_cache=st.booleans(),
    )
    def start(self, **options: Any) -> None:
        self.scheduler = make_scheduler(max_model_len=48, **options)
        self.engine = make_engine(self.scheduler)
        self.program = self.engine._program
        self.requests: dict[str, AddRequest] = {}
        self.aborted: set[str] = set()
        self.transcript = Transcript()

    @rule(
        prompt_ids=PROMPTS,
        max_tokens=st.integers(0, 30),
        temperature=st.sampled_from([0.0, 0.7]),
        seed=st.integers(0, 3),
        stop_token_ids=st.lists(st.integers(0, 49), max_size=3),
        num_logprobs=st.integers(-1, 2),
    )
    def add(self, **fields: Any) -> None:
        request = make_request(f"r{len(self.requests)}", **fields)
        self.requests[request.request_id] = request
        self.engine.add(request)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.requests)))
        self.aborted.add(request_id)
        self.engine.abort(request_id)

    @rule(num_steps=st.integers(1, 12))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self._step()

    def _step(self) -> None:
        has_work, num_tokens = self.engine.has_work, self.program.num_tokens
        outputs = self.engine.step().outputs
        self.transcript.add(outputs)
        assert bool(outputs or self.program.num_tokens > num_tokens) == has_work, "no progress"
        self.scheduler.check()

    @invariant()
    def books_agree(self) -> None:
        if hasattr(self, "scheduler"):
            self.scheduler.check()

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for _ in range(5000):
            if not self.engine.has_work:
                break
            self._step()
        assert not self.engine.has_work
        stats = self.engine.stats()
        assert stats.num_free_blocks + stats.num_cached_blocks == stats.num_total_blocks
        assert (stats.num_running, stats.num_waiting) == (0, 0)
        for request in self.requests.values():
            self._check_result(request)

    def _check_result(self, request: AddRequest) -> None:
        end = self.transcript.ends[request.request_id]
        if end.finish_reason == "abort":
            assert request.request_id in self.aborted
        elif len(request.prompt_ids) >= self.engine.max_model_len:
            assert end.finish_reason == "error"
            assert str(len(request.prompt_ids)) in (end.error or "")
        else:
            alone = run_alone(request, max_model_len=self.engine.max_model_len)
            assert self.transcript.result(request.request_id) == alone


EngineMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
TestEngineMachine = EngineMachine.TestCase
