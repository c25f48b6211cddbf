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

from roseinfer.core.messages import AddRequest, PromptLogprobs
from tests.fake_engine import make_engine, make_request, make_scheduler, run_alone, run_to_end
from tests.fake_grammars import BAD_GRAMMAR, FakeCompiler, hashed_grammar
from tests.fake_program import FakeProgram
from tests.full_engine import FullTranscript, make_full_engine, make_full_scheduler, run_fully, run_fully_alone

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


# One wish each, as every wish alone must be kept, and all of them at once.
WISHES: dict[str, dict[str, Any]] = {
    "repetition": {"repetition_penalty": 1.7},
    "presence": {"presence_penalty": 2.0, "frequency_penalty": -0.25, "max_tokens": 30},
    "frequency": {"frequency_penalty": 2.0, "temperature": 1.0},
    "bias": {"logit_bias": {3: 4.0, 5: -100.0, 9: 2.5}},
    "min-tokens": {"min_tokens": 9, "stop_token_ids": list(range(25))},
    "bad-words": {"bad_words_ids": [[i] for i in range(20)] + [[i, j] for i in range(50) for j in (20, 21)]},
    "allowed": {"allowed_token_ids": list(range(0, 50, 7))},
    "grammar": {"grammar": hashed_grammar(9), "temperature": 1.0},
    "grammar-and-eos": {"grammar": hashed_grammar(30), "stop_token_ids": [1, 2, 3, 4, 5, 6], "min_tokens": 4},
    "prompt-logprobs": {"num_prompt_logprobs": 2},
    "own-prompt-logprobs": {"num_prompt_logprobs": 0, "num_logprobs": 0},
    "last": {"priority": 5},
    "salted": {"cache_salt": "ü", "num_prompt_logprobs": 1, "priority": -2},
    "all": {
        "repetition_penalty": 1.2,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "logit_bias": {7: 3.0},
        "min_tokens": 3,
        "stop_token_ids": [4, 7, 30],
        "bad_words_ids": [[8], [7, 9]],
        "allowed_token_ids": list(range(45)),
        "grammar": hashed_grammar(14),
        "num_prompt_logprobs": 3,
        "num_logprobs": 3,
        "priority": -1,
    },
}


def wishes() -> list[AddRequest]:
    return [
        make_request(
            f"r{i}-{name}",
            (SHARED if i % 3 else SHARED[::-1])[: 6 + i] + [20 + i] * (i % 4),
            **{"max_tokens": 12, "seed": i, "num_logprobs": i % 4 - 1, **fields},
        )
        for i, (name, fields) in enumerate(WISHES.items())
    ]


SCHEDULES = pytest.mark.parametrize(
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


@SCHEDULES
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


@SCHEDULES
@pytest.mark.parametrize("num_score_rows", [0, 5, 32])
def test_wishes_are_kept_whatever_the_schedule(options: dict[str, Any], num_score_rows: int) -> None:
    scheduler = make_full_scheduler(num_score_rows, **{"max_model_len": 70, **options})
    engine = make_full_engine(scheduler)
    for _ in range(2):  # the second round meets the first one's cached prefixes
        for request in wishes():
            engine.add(request)
        transcript = run_fully(engine)
        for request in wishes():
            assert transcript.result(request.request_id) == run_fully_alone(request, 70), request.request_id
    assert (engine.stats().num_preemptions > 0) == ("num_blocks" in options)
    scheduler.check()


def test_every_wish_makes_a_difference() -> None:
    """The test above is worth what this one shows."""
    for request in wishes():
        plain = make_request(
            request.request_id,
            request.prompt_ids,
            max_tokens=request.max_tokens,
            seed=request.seed,
            temperature=request.temperature,
            num_logprobs=request.num_logprobs,
            stop_token_ids=request.stop_token_ids,
        )
        is_different = run_fully_alone(request) != run_fully_alone(plain)
        assert is_different == (request.request_id != "r11-last")


def test_wishes_are_kept_to_the_letter() -> None:
    results = {request.request_id.split("-", 1)[1]: run_fully_alone(request) for request in wishes()}
    token_ids = {name: result[0] for name, result in results.items()}
    assert all(token_ids.values())
    assert {result[4] for result in results.values()} == {"stop", "length"}
    assert len(token_ids["min-tokens"]) >= 9
    assert not set(token_ids["bad-words"]) & set(range(20))
    assert not set(token_ids["bad-words"]) & {20, 21}  # words of two, behind any token
    assert set(token_ids["allowed"]) <= set(range(0, 50, 7))
    assert len(token_ids["grammar"]) == 9
    assert results["grammar"][4:6] == ("stop", None)
    for request, result in zip(wishes(), results.values(), strict=True):
        check_prompt_logprobs(request, result[-1])


def check_prompt_logprobs(request: AddRequest, scores: PromptLogprobs | None) -> None:
    if request.num_prompt_logprobs < 0:
        assert scores is None
        return
    assert scores is not None
    assert len(scores.logprobs) == len(request.prompt_ids) - 1
    assert all(logprob < 0 for logprob in scores.logprobs)
    counts = [request.num_prompt_logprobs] * (len(request.prompt_ids) - 1) if request.num_prompt_logprobs else []
    assert [len(ids) for ids in scores.top_ids] == [len(values) for values in scores.top_logprobs] == counts


def test_a_prompt_of_one_token_has_no_logprobs_to_tell() -> None:
    assert run_fully_alone(make_request("a", [5], num_prompt_logprobs=3))[-1] == PromptLogprobs([])


def test_prompt_logprobs_that_are_known_are_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a preemption only the keys and values are; the program gives no logits for those rows."""
    scheduler = make_full_scheduler(num_blocks=10, max_model_len=40, max_running=2)
    engine = make_full_engine(scheduler)
    num_scored: list[int] = []
    score = engine._program.score
    monkeypatch.setattr(engine._program, "score", lambda inputs: num_scored.append(len(inputs.rows)) or score(inputs))
    scored = make_request("scored", SHARED, num_prompt_logprobs=1, max_tokens=3)
    engine.add(make_request("first", [40] * 4, max_tokens=24))
    engine.add(scored)
    transcript, num_scored_before = FullTranscript(), 0
    while engine.has_work:
        transcript.add(engine.step().outputs)
        if not scheduler.num_preemptions:
            num_scored_before = sum(num_scored)
    assert 4 < num_scored_before < len(SHARED) - 1, "preempted while its prompt was scored"
    assert sum(num_scored) == len(SHARED) - 1
    assert transcript.result("scored") == run_fully_alone(scored)


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


@pytest.mark.parametrize("num_accepted", [0, 1, 2, 5, 8, 11])
def test_wishes_are_kept_by_a_resubmission(num_accepted: int) -> None:
    for request in wishes():
        whole = run_fully_alone(request)
        if num_accepted < len(whole[0]):
            again = msgspec.structs.replace(request, output_ids=whole[0][:num_accepted])
            *rest, scores = run_fully_alone(again)
            assert rest == [part[num_accepted:] if isinstance(part, list) else part for part in whole[:-1]]
            assert scores == whole[-1]


def test_a_resubmission_that_has_everything_ends_at_once() -> None:
    for name in ("grammar", "min-tokens"):
        request = next(request for request in wishes() if request.request_id.endswith(name))
        whole = run_fully_alone(request)
        assert whole[4] == "stop"
        again = msgspec.structs.replace(request, output_ids=whole[0])
        engine = make_full_engine(make_full_scheduler())
        engine.add(again)
        (output,) = run_fully(engine).ends.values()
        assert (output.token_ids, output.finish_reason, output.stop_token_id) == ([], "stop", whole[5])
        assert engine.stats().num_steps == 0


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


IDS = st.lists(st.integers(0, 49), max_size=3)
ALLOWED_IDS = st.lists(st.integers(0, 49), min_size=4, max_size=40)
MACHINE_WISHES = st.fixed_dictionaries(
    {},
    optional={
        "min_tokens": st.integers(0, 6),
        "presence_penalty": st.sampled_from([-1.0, 2.0]),
        "frequency_penalty": st.sampled_from([-0.5, 1.5]),
        "repetition_penalty": st.sampled_from([0.8, 1.6]),
        "logit_bias": st.dictionaries(st.integers(0, 49), st.sampled_from([-100.0, 5.0]), max_size=3),
        "bad_words_ids": st.lists(st.lists(st.integers(0, 49), min_size=1, max_size=2), max_size=30),
        "allowed_token_ids": ALLOWED_IDS,
        "num_prompt_logprobs": st.integers(0, 2),
        "grammar": st.builds(
            hashed_grammar,
            st.integers(1, 12),
            fails_in=st.sampled_from(["", "", "mask", "accept"]),
            fails_at=st.integers(0, 8),
        )
        | st.just(BAD_GRAMMAR),
        "priority": st.integers(-1, 1),
        "cache_salt": st.sampled_from(["a", "b"]),
    },
)


class EngineMachine(RuleBasedStateMachine):
    """Requests come, go and are aborted while steps run, in pools from roomy to barely enough."""

    @initialize(
        num_blocks=st.integers(1, 40),
        block_size=st.sampled_from([1, 2, 4, 8]),
        max_batch_tokens=st.integers(1, 40),
        max_running=st.integers(1, 6),
        max_chunk_tokens=st.none() | st.integers(1, 20),
        use_prefix_cache=st.booleans(),
        num_score_rows=st.integers(0, 20),
    )
    def start(self, **options: Any) -> None:
        self.scheduler = make_full_scheduler(max_model_len=48, **options)
        self.compiler = FakeCompiler(is_slow=True)
        self.engine = make_full_engine(self.scheduler, self.compiler)
        self.program = self.engine._program
        self.requests: dict[str, AddRequest] = {}
        self.aborted: set[str] = set()
        self.transcript = FullTranscript()

    @rule(
        prompt_ids=PROMPTS,
        max_tokens=st.integers(0, 30),
        temperature=st.sampled_from([0.0, 0.7]),
        seed=st.integers(0, 3),
        stop_token_ids=st.lists(st.integers(0, 49), max_size=3),
        num_logprobs=st.integers(-1, 2),
        wishes=st.just({}) | MACHINE_WISHES,
        tenant=st.sampled_from(["", "a", "b"]),
    )
    def add(self, wishes: dict[str, Any], **fields: Any) -> None:
        request = make_request(f"r{len(self.requests)}", **fields, **wishes)
        self.requests[request.request_id] = request
        self.engine.add(request)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.requests)))
        self.aborted.add(request_id)
        self.engine.abort(request_id)

    @rule(count=st.integers(1, 3))
    def compile(self, count: int) -> None:
        self.compiler.finish(count)

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
        self.compiler.finish()
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
            assert end.error_param == "prompt"
            assert str(len(request.prompt_ids)) in (end.error or "")
        else:
            alone = run_fully_alone(request, max_model_len=self.engine.max_model_len)
            assert self.transcript.result(request.request_id) == alone


EngineMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
TestEngineMachine = EngineMachine.TestCase
