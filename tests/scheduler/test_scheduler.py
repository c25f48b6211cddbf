"""What a step computes, row by row; that results never depend on it is tested in tests/engine/test_exactness.py."""

from __future__ import annotations

import numpy as np
import pytest

from roseinfer.core.batch import ALL_FORBIDDEN, NO_TOKEN, SampleOutput
from roseinfer.core.errors import InvalidRequestError
from roseinfer.core.messages import PromptLogprobs, TokenOutput
from roseinfer.core.request import Request
from roseinfer.scheduler.batch import Batch
from roseinfer.scheduler.scheduler import Scheduler
from tests.fake_engine import make_request, make_scheduler
from tests.full_engine import make_full_scheduler
from tests.planning import add, outputs_of, plan, prompt


def finish_step(scheduler: Scheduler, batch: Batch, token_id: int = 1) -> list[TokenOutput]:
    samples = outputs_of([token_id] * len(batch.sampled_requests))
    scores = batch.score_inputs()
    outputs = scheduler.update(batch, samples, outputs_of(scores.token_ids.tolist()) if scores else None)
    scheduler.check()
    return outputs


def step(scheduler: Scheduler, token_id: int = 1) -> dict[str, int]:
    batch = scheduler.schedule()
    finish_step(scheduler, batch, token_id)
    return plan(batch)


def test_a_prompt_is_computed_then_one_token_a_step() -> None:
    scheduler = make_scheduler()
    add(scheduler, "a", prompt(10), max_tokens=3)
    assert [step(scheduler) for _ in range(4)] == [{"a": 10}, {"a": 1}, {"a": 1}, {}]
    assert not scheduler.has_work


def test_a_long_prompt_is_cut_by_the_budget_and_samples_at_its_end_only() -> None:
    scheduler = make_scheduler(max_batch_tokens=8)
    add(scheduler, "a", prompt(20))
    counts = []
    for _ in range(4):
        batch = scheduler.schedule()
        counts.append((plan(batch)["a"], len(finish_step(scheduler, batch))))
    assert counts == [(8, 0), (8, 0), (4, 1), (1, 1)]


def test_a_chunk_stops_at_a_border_if_it_reaches_one() -> None:
    scheduler = make_scheduler(max_chunk_tokens=6)
    add(scheduler, "a", prompt(19))
    assert [step(scheduler)["a"] for _ in range(5)] == [4, 4, 4, 4, 3]
    scheduler = make_scheduler(max_chunk_tokens=3)
    add(scheduler, "a", prompt(9))
    assert [step(scheduler)["a"] for _ in range(5)] == [3, 1, 3, 2, 1]


def test_decoding_goes_before_prompts_and_prompts_before_new_ones() -> None:
    scheduler = make_scheduler(max_batch_tokens=11, max_chunk_tokens=8)
    add(scheduler, "long", prompt(20))
    add(scheduler, "short", prompt(2, 30))
    assert step(scheduler) == {"long": 8, "short": 2}
    add(scheduler, "new", prompt(8, 50))
    batch = scheduler.schedule()
    assert list(plan(batch).items()) == [("short", 1), ("long", 8), ("new", 2)]


def test_a_request_that_has_nothing_to_generate_is_finished_at_once() -> None:
    scheduler = make_scheduler()
    output = scheduler.add(Request(make_request("a", prompt(3), max_tokens=0)))
    assert output == TokenOutput("a", [], finish_reason="length")
    output = scheduler.add(Request(make_request("b", prompt(3), output_ids=[4, 5], stop_token_ids=[5])))
    assert output == TokenOutput("b", [], finish_reason="stop", stop_token_id=5)
    assert not scheduler.has_work


@pytest.mark.parametrize(
    ("fields", "num_tokens", "reason"),
    [
        ({"max_tokens": 3}, 3, "length"),
        ({"max_tokens": 99}, 30, "length"),  # of the model's 40 positions
        ({"max_tokens": 99, "stop_token_ids": [9, 1]}, 1, "stop"),
    ],
)
def test_finish_reasons(fields: dict[str, object], num_tokens: int, reason: str) -> None:
    scheduler = make_scheduler(max_model_len=40)
    add(scheduler, "a", prompt(10), **fields)
    outputs = []
    while scheduler.has_work:
        outputs += finish_step(scheduler, scheduler.schedule())
    assert [output.token_ids for output in outputs] == [[1]] * num_tokens
    assert [output.finish_reason for output in outputs] == [None] * (num_tokens - 1) + [reason]
    assert outputs[-1].stop_token_id == (1 if reason == "stop" else None)


def test_the_length_limit_is_the_smaller_of_model_and_pool() -> None:
    assert make_scheduler(num_blocks=5, block_size=4, max_model_len=128).max_model_len == 20
    assert make_scheduler(num_blocks=50, block_size=4, max_model_len=128).max_model_len == 128


def test_logprobs_go_along() -> None:
    scheduler = make_scheduler()
    for count in (-1, 0, 2):
        add(scheduler, f"r{count}", prompt(3, 10 * (count + 1)), num_logprobs=count)
    samples = SampleOutput(
        token_ids=np.array([4, 5, 6], np.int32),
        logprobs=np.array([np.nan, -0.5, -0.25], np.float32),
        top_ids=[np.empty(0, np.int32), np.empty(0, np.int32), np.array([6, 1], np.int32)],
        top_logprobs=[np.empty(0, np.float32), np.empty(0, np.float32), np.array([-0.25, -2], np.float32)],
    )
    none, own, top = scheduler.update(scheduler.schedule(), samples)
    assert (none.logprobs, none.top_ids, none.top_logprobs) == ([], [], [])
    assert (own.logprobs, own.top_ids, own.top_logprobs) == ([-0.5], [], [])
    assert (top.logprobs, top.top_ids, top.top_logprobs) == ([-0.25], [[6, 1]], [[-0.25, -2.0]])


def test_a_row_without_a_finite_logit_ends_alone_and_its_blocks_are_not_reused() -> None:
    scheduler = make_scheduler(max_chunk_tokens=8)
    add(scheduler, "good", prompt(3))
    add(scheduler, "bad", prompt(9, 20))
    assert step(scheduler, token_id=7) == {"good": 3, "bad": 8}  # two blocks of "bad" are published
    samples = SampleOutput(np.array([3, -1], np.int32), np.zeros(2, np.float32))
    good, bad = scheduler.update(scheduler.schedule(), samples)
    assert (good.token_ids, good.finish_reason) == ([3], None)
    assert (bad.token_ids, bad.finish_reason) == ([], "error")
    assert "finite" in (bad.error or "")
    scheduler.check()
    assert scheduler.block_pool.num_cached == 0
    assert step(scheduler) == {"good": 1}


# -- sharing ------------------------------------------------------------------------------------------------


def test_a_prefix_that_is_being_computed_is_computed_once() -> None:
    scheduler = make_scheduler(num_blocks=600, max_batch_tokens=2048, max_model_len=2000)
    shared = [i % 50 for i in range(1000)]
    for i in range(8):
        add(scheduler, f"r{i}", shared + [i] * 32)
    first, second = step(scheduler), step(scheduler)
    assert first == {"r0": 1032}
    assert second == {"r0": 1, **{f"r{i}": 32 for i in range(1, 8)}}
    assert [request.num_cached_tokens for request in scheduler.running] == [0] + [1000] * 7


@pytest.mark.parametrize("max_chunk_tokens", [1, 3, 4, 7, 16, 100])
def test_a_shared_prefix_is_computed_once_whatever_the_chunks(max_chunk_tokens: int) -> None:
    scheduler = make_scheduler(max_batch_tokens=500, max_chunk_tokens=max_chunk_tokens)
    for i in range(4):
        add(scheduler, f"r{i}", [*prompt(40), i], max_tokens=1)
    num_tokens = 0
    while scheduler.has_work:
        num_tokens += sum(step(scheduler).values())
    assert num_tokens == 40 + 4


def test_who_waits_for_a_prefix_does_not_block_others() -> None:
    scheduler = make_scheduler()
    add(scheduler, "a", prompt(20))
    add(scheduler, "same", prompt(20))
    add(scheduler, "other", prompt(20, 30))
    assert step(scheduler) == {"a": 20, "other": 20}
    assert step(scheduler) == {"a": 1, "other": 1, "same": 4}


def test_a_waiter_computes_the_rest_itself_when_the_other_is_gone() -> None:
    scheduler = make_scheduler(max_chunk_tokens=8)
    add(scheduler, "a", prompt(20))
    add(scheduler, "same", prompt(20))
    assert step(scheduler) == {"a": 8}
    assert step(scheduler) == {"a": 8}
    scheduler.abort("a")
    assert step(scheduler) == {"same": 4}
    assert scheduler.running[0].num_cached_tokens == 16


@pytest.mark.parametrize("max_chunk_tokens", [4, 3])
def test_a_request_overtaken_by_another_goes_on_with_its_blocks(max_chunk_tokens: int) -> None:
    scheduler = make_scheduler(max_chunk_tokens=max_chunk_tokens)
    slow = add(scheduler, "slow", prompt(40))
    step(scheduler)
    fast = add(scheduler, "fast", prompt(26))
    scheduler.running.remove(slow)  # as if other requests had left no budget for it
    while fast.num_computed_tokens < 20:
        batch = scheduler.schedule()
        assert list(plan(batch)) == ["fast"]
        scheduler.update(batch, SampleOutput(np.empty(0, np.int32), np.empty(0, np.float32)))
    scheduler.running.insert(0, slow)
    while slow.num_computed_tokens < 20:
        step(scheduler)  # a block that was begun is filled first
    assert slow.num_cached_tokens == 16
    assert slow.block_table.tolist()[:5] == fast.block_table.tolist()[:5]


# -- memory -------------------------------------------------------------------------------------------------


def test_the_youngest_is_preempted_and_comes_back() -> None:
    scheduler = make_scheduler(num_blocks=6, max_model_len=24)
    old = add(scheduler, "old", prompt(8), max_tokens=7)
    young = add(scheduler, "young", prompt(8, 20), max_tokens=8)
    while not scheduler.num_preemptions:
        step(scheduler)
    assert (old.is_running, young.is_running, list(scheduler.waiting)) == (True, False, [young])
    young_tokens = young.num_tokens
    while old.is_running:
        step(scheduler)
    assert not young.is_running
    num_computed = step(scheduler)["young"]
    assert young.num_tokens == young_tokens + 1
    assert num_computed == young_tokens - 8  # of its three full blocks, the tail was evicted
    assert young.num_cached_tokens == 0  # its own blocks are no prefix hit


def test_waiting_requests_start_only_where_their_tokens_fit() -> None:
    scheduler = make_scheduler(num_blocks=8, max_chunk_tokens=4, max_model_len=32)
    add(scheduler, "a", prompt(20), max_tokens=2)
    add(scheduler, "b", prompt(16, 20), max_tokens=2)
    add(scheduler, "c", prompt(4, 40), max_tokens=2)
    # Seven blocks are available, but "a" will take four more of them and "b" wants four; "c" does not overtake.
    assert step(scheduler) == {"a": 4}
    while "a" in scheduler:
        assert "b" not in step(scheduler)
    assert step(scheduler) == {"b": 4, "c": 4}
    assert scheduler.num_preemptions == 0


def test_cached_blocks_in_use_need_no_room() -> None:
    scheduler = make_scheduler(num_blocks=8, max_model_len=32)
    add(scheduler, "a", prompt(24), max_tokens=4)
    step(scheduler)
    add(scheduler, "b", prompt(24), max_tokens=1)
    assert step(scheduler) == {"a": 1, "b": 4}


def test_an_abort_frees_everything_in_any_state() -> None:
    scheduler = make_scheduler(max_running=1, use_prefix_cache=False)
    add(scheduler, "running", prompt(10))
    add(scheduler, "waiting", prompt(10))
    step(scheduler)
    for request_id in ("running", "waiting"):
        output = scheduler.abort(request_id)
        assert output is not None
        assert output.finish_reason == "abort"
        assert scheduler.abort(request_id) is None
        scheduler.check()
    assert not scheduler.has_work
    assert scheduler.block_pool.num_free == scheduler.block_pool.num_blocks


def test_no_more_than_max_running_run() -> None:
    scheduler = make_scheduler(max_running=3)
    for i in range(5):
        add(scheduler, f"r{i}", [i, i], max_tokens=2)
    assert [len(step(scheduler)) for _ in range(4)] == [3, 3, 2, 2]


@pytest.mark.parametrize("name", ["max_batch_tokens", "max_running", "max_model_len", "max_chunk_tokens"])
def test_limits_are_positive(name: str) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        make_scheduler(**{name: -1})


def test_there_is_a_row_of_logits_for_everybody_who_runs() -> None:
    scheduler = make_scheduler(max_running=3)
    with pytest.raises(ValueError, match="2 rows of logits are not enough for 3"):
        Scheduler(
            block_pool=scheduler.block_pool,
            prefix_cache=None,
            max_batch_tokens=8,
            max_running=3,
            max_model_len=8,
            max_logit_rows=2,
        )


# -- priorities ---------------------------------------------------------------------------------------------


def test_waiting_requests_start_by_priority_then_age() -> None:
    scheduler = make_scheduler(max_running=2)
    for i, priority in enumerate([1, 0, 1, -1, 0]):
        add(scheduler, f"r{i}", [i, i], max_tokens=1, priority=priority)
    assert [list(step(scheduler)) for _ in range(3)] == [["r3", "r1"], ["r4", "r0"], ["r2"]]


def test_the_budget_goes_to_the_first_in_order() -> None:
    scheduler = make_scheduler(max_batch_tokens=10, max_chunk_tokens=8)
    add(scheduler, "late", prompt(20), priority=1)
    assert step(scheduler) == {"late": 8}
    add(scheduler, "later", prompt(20, 20), priority=2)
    add(scheduler, "urgent", prompt(20, 40), priority=-1)
    assert step(scheduler) == {"late": 8, "urgent": 2}
    assert step(scheduler) == {"urgent": 6, "late": 4}
    assert [request.request_id for request in scheduler.running] == ["urgent", "late"]


def test_the_last_in_order_is_preempted_whatever_its_age() -> None:
    scheduler = make_scheduler(num_blocks=6, max_model_len=24)
    patient = add(scheduler, "patient", prompt(8), max_tokens=8, priority=1)
    urgent = add(scheduler, "urgent", prompt(8, 20), max_tokens=8)
    while not scheduler.num_preemptions:
        step(scheduler)
    assert (patient.is_running, urgent.is_running) == (False, True)
    add(scheduler, "last", prompt(4), priority=2)
    add(scheduler, "first", prompt(4), priority=-2)
    assert [request.request_id for request in scheduler.waiting] == ["first", "patient", "last"]


# -- prompts that are scored --------------------------------------------------------------------------------


def test_chunks_of_a_scored_prompt_fit_the_rows_of_logits() -> None:
    scheduler = make_full_scheduler(num_score_rows=2, max_running=4)
    add(scheduler, "scored", prompt(15), num_prompt_logprobs=0)
    # Alone it may take all six rows, but one for the token that is sampled; chunks end at borders where they can.
    assert [step(scheduler)["scored"] for _ in range(4)] == [4, 4, 4, 3]
    assert step(scheduler) == {"scored": 1}


def test_who_may_sample_keeps_a_row_of_logits() -> None:
    scheduler = make_full_scheduler(num_score_rows=2, max_running=4, block_size=32)
    add(scheduler, "scored", prompt(20), num_prompt_logprobs=0)
    for i in range(5):  # of whom three can run
        add(scheduler, f"r{i}", [30 + i], max_tokens=20)
    for _ in range(5):
        batch = scheduler.schedule()
        assert plan(batch) == {"scored": 3, "r0": 1, "r1": 1, "r2": 1}
        assert len(batch.forward_inputs().logit_rows) == 6
        finish_step(scheduler, batch)


def test_scored_prompts_share_the_rows_of_logits_in_order() -> None:
    scheduler = make_full_scheduler(num_score_rows=2, max_running=4, block_size=16)
    for i in range(3):
        add(scheduler, f"r{i}", prompt(9, 10 * i), num_prompt_logprobs=0, max_tokens=1)
    plans = []
    while scheduler.has_work:
        batch = scheduler.schedule()
        assert len(batch.forward_inputs().logit_rows) <= 6
        plans.append(plan(batch))
        finish_step(scheduler, batch)
    assert plans == [{"r0": 6}, {"r0": 3, "r1": 3}, {"r1": 6}, {"r2": 6}, {"r2": 3}]


def test_a_scored_prompt_takes_nothing_from_the_cache_but_gives() -> None:
    scheduler = make_full_scheduler(num_score_rows=40)
    add(scheduler, "a", prompt(20), max_tokens=1)
    step(scheduler)
    scored = add(scheduler, "scored", prompt(20), num_prompt_logprobs=0, max_tokens=2)
    assert step(scheduler) == {"scored": 20}
    assert scored.num_cached_tokens == 0
    scheduler.abort("scored")
    add(scheduler, "other", prompt(24, 20), num_prompt_logprobs=0, max_tokens=1)
    step(scheduler)
    add(scheduler, "plain", prompt(24, 20), max_tokens=1)
    assert step(scheduler) == {"plain": 4}


def test_nobody_waits_for_a_scored_prompt_and_it_waits_for_nobody() -> None:
    scheduler = make_full_scheduler(num_score_rows=4, max_running=4)
    add(scheduler, "scored", prompt(20), num_prompt_logprobs=0)
    add(scheduler, "plain", prompt(20))
    assert step(scheduler) == {"scored": 4, "plain": 20}


def test_a_prompt_that_cannot_be_scored_ends_its_request_only() -> None:
    scheduler = make_full_scheduler(num_score_rows=20)
    add(scheduler, "bad", prompt(3), num_prompt_logprobs=0)
    add(scheduler, "good", prompt(3, 20), num_prompt_logprobs=0)
    bad, good = scheduler.update(scheduler.schedule(), outputs_of([5, 6]), outputs_of([-1, 2, 21, 22]))
    assert (bad.token_ids, bad.finish_reason, bad.prompt_logprobs) == ([], "error", None)
    assert "finite" in (bad.error or "")
    assert (good.token_ids, good.prompt_logprobs) == ([6], PromptLogprobs([0.0, 0.0]))
    scheduler.check()


# -- counting -----------------------------------------------------------------------------------------------


def test_prompt_tokens_looked_for_and_found_in_the_cache_are_counted_once() -> None:
    scheduler = make_full_scheduler(num_score_rows=40, num_blocks=12, max_model_len=48)
    add(scheduler, "a", prompt(20), max_tokens=3)
    step(scheduler)
    assert (scheduler.num_prefix_queries, scheduler.num_prefix_hits) == (20, 0)
    again = add(scheduler, "again", prompt(20), max_tokens=20)
    step(scheduler)
    assert (scheduler.num_prefix_queries, scheduler.num_prefix_hits) == (40, 16)
    add(scheduler, "scored", prompt(20), num_prompt_logprobs=0, max_tokens=1)  # looks for nothing
    add(scheduler, "urgent", prompt(20, 50), max_tokens=20, priority=-1)
    while scheduler.has_work:
        step(scheduler)
    assert again.num_preemptions > 0
    assert (scheduler.num_prefix_queries, scheduler.num_prefix_hits) == (60, 16)


def test_the_check_finds_a_shared_writable_block() -> None:
    scheduler = make_scheduler()
    a, b = add(scheduler, "a", prompt(6)), add(scheduler, "b", prompt(6, 20))
    step(scheduler)
    scheduler.check()
    own = b.block_table[1]
    b.block_table[1] = a.block_table[1]
    scheduler.block_pool.retain(a.block_table[1])
    scheduler.block_pool.release([own])
    with pytest.raises(AssertionError, match="shared"):
        scheduler.check()


def test_a_callers_fault_names_the_field() -> None:
    scheduler = make_scheduler()
    ours, theirs = add(scheduler, "ours", prompt(3)), add(scheduler, "theirs", prompt(3, 9))
    scheduler.schedule()
    output = scheduler.fail(ours, ValueError("oh"))
    assert (output.error, output.error_param) == ("the request failed in the engine: oh", None)
    output = scheduler.fail(theirs, InvalidRequestError("no token may follow", "grammar"))
    assert (output.error, output.error_param) == ("no token may follow", "grammar")
    assert not scheduler.has_work
    scheduler.check()


# -- tenants ------------------------------------------------------------------------------------------------


def test_a_tenant_that_asks_for_much_does_not_keep_others_waiting() -> None:
    scheduler = make_scheduler(max_running=1)
    for i in range(6):
        add(scheduler, f"a{i}", prompt(4, i), max_tokens=2, tenant="a")
    step(scheduler)
    add(scheduler, "b0", prompt(4, 20), max_tokens=2, tenant="b")
    started = ["a0"]
    while scheduler.has_work:
        started += [name for name in step(scheduler) if name not in started]
    assert started == ["a0", "b0", "a1", "a2", "a3", "a4", "a5"]


def test_tenants_share_the_tokens_and_not_the_requests() -> None:
    scheduler = make_scheduler(max_running=1, use_prefix_cache=False)
    for i in range(10):
        add(scheduler, f"big{i}", prompt(18), max_tokens=1, tenant="big")
        add(scheduler, f"small{i}", prompt(3), max_tokens=1, tenant="small")
    tokens = {"big": 0, "small": 0}
    while scheduler.has_work and tokens["small"] < 30:
        for name, count in step(scheduler).items():
            tokens[name.rstrip("0123456789")] += count
            assert abs(tokens["big"] - tokens["small"]) <= 18 + 12  # one request, and twice the answers
    assert tokens["big"] <= 54


def test_tokens_from_the_cache_are_free_and_answers_count_twice() -> None:
    scheduler = make_scheduler()
    add(scheduler, "first", prompt(20), max_tokens=3, tenant="a")
    while "first" in scheduler:
        step(scheduler)
        add(scheduler, f"other{scheduler.token_counters['a']}", [45], max_tokens=9, tenant="other")
    assert scheduler.token_counters["a"] == 20 + 2 * 3
    add(scheduler, "again", prompt(20), max_tokens=1, tenant="a")
    before = scheduler.token_counters["a"]
    step(scheduler)
    assert scheduler.token_counters["a"] - before == 4 + 2  # one block of five is computed


def test_a_preemption_is_not_paid_for() -> None:
    scheduler = make_scheduler(num_blocks=6, max_model_len=24, use_prefix_cache=False)
    add(scheduler, "old", prompt(8), max_tokens=7, tenant="a")
    young = add(scheduler, "young", prompt(8, 20), max_tokens=8, tenant="b")
    while "young" in scheduler:
        num_output_tokens = young.num_output_tokens
        counters = scheduler.token_counters["b"]
        step(scheduler)
    assert young.num_preemptions > 0
    assert counters == 8 + 2 * num_output_tokens


def test_the_counters_begin_anew_where_nobody_has_a_request() -> None:
    scheduler = make_scheduler()
    add(scheduler, "a", prompt(4), max_tokens=1, tenant="a")
    step(scheduler)
    assert scheduler.token_counters["a"] == 0


# -- faults -------------------------------------------------------------------------------------------------


def test_everything_forbidden_is_the_callers_fault_and_its_blocks_stay() -> None:
    scheduler = make_scheduler(max_chunk_tokens=8)
    add(scheduler, "bad", prompt(9), allowed_token_ids=[3], logit_bias={3: -np.inf})
    step(scheduler)
    (output,) = scheduler.update(scheduler.schedule(), outputs_of([ALL_FORBIDDEN]))
    assert (output.finish_reason, output.error_param) == ("error", "allowed_token_ids")
    assert output.error == "everything is forbidden that could come next, by allowed_token_ids, logit_bias"
    scheduler.check()
    assert scheduler.block_pool.num_cached == 2


@pytest.mark.parametrize("fields", [{}, {"logit_bias": {3: 5.0}}])
def test_broken_logits_are_our_fault_whatever_was_asked_for(fields: dict[str, object]) -> None:
    scheduler = make_scheduler(max_chunk_tokens=8)
    add(scheduler, "bad", prompt(9), **fields)
    step(scheduler)
    (output,) = scheduler.update(scheduler.schedule(), outputs_of([NO_TOKEN]))
    assert (output.finish_reason, output.error_param) == ("error", None)
    assert "finite" in (output.error or "")
    scheduler.check()
    assert scheduler.block_pool.num_cached == 0


def test_penalties_that_leave_nothing_are_nobodys_wish() -> None:
    scheduler = make_scheduler()
    add(scheduler, "bad", prompt(3), repetition_penalty=2.0)
    (output,) = scheduler.update(scheduler.schedule(), outputs_of([ALL_FORBIDDEN]))
    assert (output.error, output.error_param) == (
        "the request failed in the engine: the penalties leave no finite logit",
        None,
    )


def test_in_a_broken_pool_waiting_requests_fail_one_by_one() -> None:
    scheduler = make_scheduler(num_blocks=8, max_model_len=32)
    scheduler.block_pool.allocate(6)  # and nobody will ever give them back
    add(scheduler, "small", prompt(8), max_tokens=1, priority=1)
    add(scheduler, "large", prompt(20))
    assert not scheduler.schedule()
    output = scheduler.fail_stuck()
    assert output is not None
    assert (output.request_id, output.finish_reason) == ("large", "error")
    assert "5 KV blocks, 2 of 8 are available" in (output.error or "")
    assert plan(scheduler.schedule()) == {"small": 8}


def test_a_request_that_outgrows_a_broken_pool_fails() -> None:
    scheduler = make_scheduler(num_blocks=8, max_model_len=32, use_prefix_cache=False)
    scheduler.block_pool.allocate(6)
    request = add(scheduler, "a", prompt(8))
    batch = scheduler.schedule()
    assert plan(batch) == {"a": 8}
    scheduler.update(batch, outputs_of([1]))
    assert not scheduler.schedule()  # it preempts itself, and does not fit any more
    assert not request.is_running
    assert scheduler.fail_stuck() is not None
    assert not scheduler.has_work
    assert scheduler.fail_stuck() is None


def test_a_sound_scheduler_is_never_stuck() -> None:
    assert make_scheduler().fail_stuck() is None
