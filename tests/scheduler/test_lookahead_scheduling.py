"""Planning while a step is under way; that results never depend on it is tested in tests/engine/test_lookahead.py."""

from __future__ import annotations

import numpy as np
import pytest

from roseinfer.core.batch import NO_TOKEN, SampleOutput
from roseinfer.core.messages import TokenOutput
from roseinfer.scheduler.batch import Batch, SamplingTable
from roseinfer.scheduler.scheduler import Scheduler
from tests.fake_engine import make_scheduler
from tests.full_engine import make_full_scheduler
from tests.planning import add, outputs_of, plan, prompt


def settle(scheduler: Scheduler, batch: Batch, token_id: int = 1) -> list[TokenOutput]:
    scores = outputs_of([0] * sum(row.num_scores for row in batch.rows))
    return scheduler.settle(batch, outputs_of([token_id] * len(batch.sampled_requests)), scores)


def launch(scheduler: Scheduler, before: Batch | None = None, token_id: int = 1) -> Batch:
    """Plans a step, settles the one before and assumes the new one."""
    batch = scheduler.schedule()
    if before is not None:
        settle(scheduler, before, token_id)
    scheduler.assume(batch)
    scheduler.check()
    return batch


def test_the_next_step_reads_what_the_one_under_way_samples() -> None:
    scheduler = make_scheduler()
    add(scheduler, "a", prompt(3), max_tokens=3)
    add(scheduler, "long", prompt(70, 5))
    add(scheduler, "b", prompt(5, 20), max_tokens=3)
    scheduler.max_chunk_tokens = 12
    first = launch(scheduler)
    assert plan(first) == {"a": 3, "long": 12, "b": 5}
    second = scheduler.schedule()
    assert list(plan(second).items()) == [("a", 1), ("b", 1), ("long", 12)]
    inputs = second.forward_inputs()
    assert inputs.token_ids[:3].tolist() == [-1, -2, 17]  # sampled rows of the first: "a" and "b"
    assert inputs.positions[:3].tolist() == [3, 5, 12]
    assert SamplingTable(99).inputs(second.sampled_requests).positions.tolist() == [4, 6]
    outputs = settle(scheduler, first, token_id=7)
    assert [(output.request_id, output.token_ids) for output in outputs] == [("a", [7]), ("b", [7])]
    assert second.forward_inputs().token_ids[:3].tolist() == [7, 7, 17]


def test_who_gets_the_last_token_by_length_is_not_planned_again() -> None:
    scheduler = make_scheduler(max_model_len=6)
    add(scheduler, "a", prompt(3), max_tokens=1)
    add(scheduler, "b", prompt(5, 20), max_tokens=9)
    add(scheduler, "c", prompt(4, 30), max_tokens=9)
    first = launch(scheduler)
    second = launch(scheduler, first)
    assert plan(second) == {"c": 1}
    assert not scheduler.schedule()
    assert [output.finish_reason for output in settle(scheduler, second)] == ["length"]
    assert not scheduler.has_work


def test_a_row_of_a_request_that_has_ended_is_passed_over() -> None:
    scheduler = make_scheduler()
    for i in range(3):
        add(scheduler, f"r{i}", prompt(4, 10 * i), stop_token_ids=[9], num_logprobs=0)
    first = launch(scheduler)
    second = scheduler.schedule()
    settle(scheduler, first)
    scheduler.assume(second)
    scheduler.abort("r1")
    samples = SampleOutput(np.array([9, 5, 6], np.int32), np.array([-1, -2, -3], np.float32))
    stopped, last = scheduler.settle(second, samples)
    assert (stopped.request_id, stopped.finish_reason, stopped.logprobs) == ("r0", "stop", [-1.0])
    assert (last.request_id, last.token_ids, last.logprobs) == ("r2", [6], [-3.0])
    scheduler.check()


def test_blocks_are_published_when_they_are_settled() -> None:
    scheduler = make_scheduler()
    add(scheduler, "a", prompt(10), max_tokens=9)
    first = launch(scheduler)
    pool = scheduler.block_pool
    assert not any(map(pool.is_published, range(pool.num_blocks)))
    second = launch(scheduler, first)
    assert sum(map(pool.is_published, range(pool.num_blocks))) == 2
    third = launch(scheduler, second)
    settle(scheduler, third)
    assert sum(map(pool.is_published, range(pool.num_blocks))) == 3
    scheduler.check()


@pytest.mark.parametrize("is_aborted", [False, True])
def test_a_prefix_under_way_is_waited_for_as_long_as_somebody_holds_it(is_aborted: bool) -> None:
    scheduler = make_scheduler()
    add(scheduler, "a", prompt(20), max_tokens=9)
    first = launch(scheduler)
    add(scheduler, "same", prompt(20), max_tokens=9)
    if is_aborted:
        scheduler.abort("a")
    second = launch(scheduler, first)
    assert plan(second) == ({"same": 20} if is_aborted else {"a": 1})
    assert plan(launch(scheduler, second)) == ({"same": 1} if is_aborted else {"a": 1, "same": 4})


def until_preempted(scheduler: Scheduler) -> tuple[Batch, Batch]:
    """The step under way, and the one that was planned upon it at the expense of somebody."""
    before = launch(scheduler)
    while True:
        batch = scheduler.schedule()
        if scheduler.num_preemptions:
            return before, batch
        settle(scheduler, before)
        scheduler.assume(batch)
        before = batch


def test_who_is_preempted_gets_the_token_under_way_and_waits_for_it() -> None:
    """Even where there is room again at once: there its blocks hold something else, and its last token is not known."""
    scheduler = make_scheduler(num_blocks=8, max_model_len=32)
    add(scheduler, "old", prompt(8), max_tokens=15)
    young = add(scheduler, "young", prompt(8, 20), max_tokens=15)
    before, batch = until_preempted(scheduler)
    assert (plan(before), plan(batch)) == ({"old": 1, "young": 1}, {"old": 1})
    assert young.token_ids[-1] == -2
    published = [scheduler.block_pool.find(digest) for digest in young.block_digests]
    _, late = settle(scheduler, before, token_id=5)
    assert (late.request_id, late.token_ids, young.token_ids[-1]) == ("young", [5], 5)
    assert [scheduler.block_pool.find(digest) for digest in young.block_digests[: len(published)]] == published
    scheduler.assume(batch)
    scheduler.check()
    assert not young.is_running


def test_who_is_preempted_is_not_started_again_in_the_same_step() -> None:
    """Not even where two were, and there is room for one of them again."""
    scheduler = make_scheduler(num_blocks=9, max_model_len=36)
    for i in range(2):
        add(scheduler, f"old{i}", prompt(3, 10 * i), tenant="many")
    add(scheduler, "large", prompt(23, 20), tenant="many")
    first = launch(scheduler)
    small = add(scheduler, "small", prompt(2, 45), tenant="one")
    second = launch(scheduler, first)
    third = scheduler.schedule()
    assert (plan(third), scheduler.num_preemptions) == ({"old0": 1, "old1": 1}, 2)
    assert next(scheduler.waiting.candidates(1)) is small
    assert scheduler.block_pool.num_available == 5
    settle(scheduler, second)
    scheduler.assume(third)
    scheduler.check()
    assert plan(launch(scheduler, third)) == {"old0": 1, "old1": 1, "small": 3}


def test_what_a_preempted_request_has_computed_is_distrusted_with_it() -> None:
    scheduler = make_scheduler(num_blocks=8, max_model_len=32)
    add(scheduler, "old", prompt(8), max_tokens=15)
    young = add(scheduler, "young", prompt(8, 20), max_tokens=15)
    before, batch = until_preempted(scheduler)
    pool = scheduler.block_pool
    assert any(pool.find(digest) is not None for digest in young.block_digests)
    _, output = scheduler.settle(before, outputs_of([1, NO_TOKEN]))
    assert (output.request_id, output.finish_reason) == ("young", "error")
    assert not any(pool.find(digest) is not None for digest in young.block_digests)
    scheduler.assume(batch)
    scheduler.check()


# -- the way back -------------------------------------------------------------------------------------------


def test_a_retracted_step_can_be_computed_again() -> None:
    scheduler = make_scheduler(max_chunk_tokens=8)
    a, b = add(scheduler, "a", prompt(7), max_tokens=9), add(scheduler, "b", prompt(24, 10))
    first = launch(scheduler)
    add(scheduler, "new", prompt(3, 40))
    second = scheduler.schedule()
    assert plan(second) == {"a": 1, "b": 8, "new": 3}
    again = scheduler.retract(first)
    assert plan(again) == {"a": 7, "b": 8}
    assert (a.num_tokens, a.num_computed_tokens, b.num_computed_tokens) == (7, 0, 0)
    assert again.forward_inputs().block_tables.shape == (2, 2)
    scheduler.update(again, outputs_of([1]))
    rest = scheduler.still_planned(second)
    assert plan(rest) == {"a": 1, "new": 3}, "the block that b needs was given back"
    scheduler.update(rest, outputs_of([1, 1]))
    scheduler.check()
    assert plan(scheduler.schedule()) == {"a": 1, "b": 8, "new": 1}


def test_after_a_retraction_whoever_has_ended_or_was_preempted_is_left_alone() -> None:
    scheduler = make_scheduler(num_blocks=8, max_model_len=32)
    add(scheduler, "old", prompt(8), max_tokens=15)
    young = add(scheduler, "young", prompt(8, 20), max_tokens=15)
    before, batch = until_preempted(scheduler)
    num_tokens = young.num_tokens
    assert plan(scheduler.retract(before)) == {"old": 1}
    assert (young.num_tokens, young.is_running) == (num_tokens - 1, False)
    scheduler.abort("old")
    assert not scheduler.still_planned(batch)
    scheduler.check()
    assert list(plan(scheduler.schedule())) == ["young"]


def test_a_retracted_prompt_is_scored_once() -> None:
    scheduler = make_full_scheduler(num_score_rows=20, max_chunk_tokens=4)
    scored = add(scheduler, "a", prompt(10), num_prompt_logprobs=0, max_tokens=2)
    first = launch(scheduler)
    second = scheduler.schedule()
    settle(scheduler, first)
    scheduler.assume(second)
    assert plan(scheduler.schedule()) == {"a": 2}
    again = scheduler.retract(second)
    assert (plan(again), scored.num_unscored_tokens) == ({"a": 4}, 5)
    scores = again.score_inputs()
    assert scores is not None
    assert scores.token_ids.tolist() == [5, 6, 7, 8]
    scheduler.assume(again)
    settle(scheduler, again)
    third = scheduler.schedule()
    scheduler.assume(third)
    (output,) = settle(scheduler, third)
    assert output.prompt_logprobs is not None
    assert len(output.prompt_logprobs.logprobs) == 9


# -- the checker --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda request: request.token_ids.append(3), "awaits no token, or another one"),
        (lambda request: request.token_ids.insert(2, -1), "a placeholder within"),
        (lambda request: request.block_digests.extend([b"digest"] * 2), "a digest of tokens that are not known"),
    ],
)
def test_the_check_finds_a_misplaced_placeholder(spoil: object, message: str) -> None:
    scheduler = make_scheduler()
    request = add(scheduler, "a", prompt(7))
    launch(scheduler)
    assert callable(spoil)
    spoil(request)
    with pytest.raises(AssertionError, match=message):
        scheduler.check()


def test_the_check_finds_a_block_that_was_published_before_it_was_computed() -> None:
    scheduler = make_scheduler()
    request = add(scheduler, "a", prompt(9))
    launch(scheduler)
    scheduler.block_pool.publish(request.block_table[0], b"digest")
    with pytest.raises(AssertionError, match=r"writable block 0 of .* is published"):
        scheduler.check()
