"""alone == batched == chunked == cached == preempted == resubmitted, token for token.

The fake program hashes what it reads back from the KV memory, so any scheduling or caching error shows here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from roseinfer.core.messages import AddRequest, PromptLogprobs
from tests.engine.engine_machine import EngineMachine
from tests.engine.workloads import SCHEDULES, SHARED, wishes, workload
from tests.fake_engine import make_engine, make_request, make_scheduler, run_alone, run_to_end
from tests.fake_program import FakeProgram
from tests.full_engine import FullTranscript, make_full_engine, make_full_scheduler, run_fully, run_fully_alone


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


TestEngineMachine = EngineMachine.TestCase
