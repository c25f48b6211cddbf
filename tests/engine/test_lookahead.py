"""Steps that are launched while the one before is under way bring the same results, one step later."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule
from msgspec import structs

from roseinfer.core.batch import SamplingInputs
from roseinfer.core.messages import AddRequest
from roseinfer.engine.engine import Engine
from roseinfer.scheduler.scheduler import Scheduler
from tests.engine.engine_machine import LIMITS, SETTINGS, EngineMachine
from tests.engine.workloads import SCHEDULES, SHARED, wishes, workload
from tests.fake_engine import make_request, make_scheduler, run_alone, run_to_end
from tests.fake_grammars import hashed_grammar
from tests.fake_lookahead import FakeLookaheadProgram, make_lookahead_engine
from tests.full_engine import FullTranscript, make_full_scheduler, run_fully, run_fully_alone

POISON = 49
DEVICES: dict[str, dict[str, Any]] = {"eager": {}, "raising-early": {"raises_early": True}, "lazy": {"is_lazy": True}}
on_all_devices = pytest.mark.parametrize("device", DEVICES)


def make(scheduler: Scheduler | None = None, device: str = "lazy", **options: Any) -> Engine:
    return make_lookahead_engine(scheduler or make_scheduler(), **DEVICES[device], **options)


def program_of(engine: Engine) -> FakeLookaheadProgram:
    program = engine._program
    assert isinstance(program, FakeLookaheadProgram)
    return program


def plain_requests(count: int = 6) -> list[AddRequest]:
    return [make_request(f"r{i}", [i + 1] * (i + 1), max_tokens=6, stop_token_ids=[POISON]) for i in range(count)]


def count_rows(program: FakeLookaheadProgram) -> Counter[int]:
    """How many steps had so many rows."""
    return Counter(len(launched.forward.block_tables) for launched in program.launched)


# -- the same results ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone() -> dict[str, tuple[Any, ...]]:
    """What every request of `wishes` and `workload` gets that has an engine for itself."""
    return {request.request_id: run_fully_alone(request, max_model_len=70) for request in [*wishes(), *workload()]}


@SCHEDULES
@on_all_devices
def test_results_do_not_depend_on_lookahead(
    options: dict[str, Any], device: str, alone: dict[str, tuple[Any, ...]]
) -> None:
    scheduler = make_scheduler(**{"max_model_len": 70, **options})
    engine = make(scheduler, device)
    for _ in range(2):  # the second round meets the first one's cached prefixes
        for request in workload():
            engine.add(request)
        transcript = run_fully(engine)
        for request in workload():
            assert transcript.result(request.request_id) == alone[request.request_id]
    assert (engine.stats().num_preemptions > 0) == ("num_blocks" in options)
    assert program_of(engine).num_steps == len(program_of(engine).launched), "a step was computed the plain way"
    scheduler.check()


@SCHEDULES
@pytest.mark.parametrize("num_score_rows", [0, 5])
def test_wishes_are_kept_beside_lookahead(
    options: dict[str, Any], num_score_rows: int, alone: dict[str, tuple[Any, ...]]
) -> None:
    scheduler = make_full_scheduler(num_score_rows, **{"max_model_len": 70, **options})
    engine = make(scheduler)
    for request in [*wishes(), *workload()]:
        engine.add(request)
    transcript = run_fully(engine)
    assert {name: transcript.result(name) for name in alone} == alone
    assert program_of(engine).num_steps > len(program_of(engine).launched) > 0, "not both ways were gone"
    scheduler.check()


# -- overlap ------------------------------------------------------------------------------------------------


def test_a_step_is_launched_before_the_one_before_is_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make()
    program, events = program_of(engine), []
    for call in ("launch", "finish"):
        original = getattr(program, call)
        monkeypatch.setattr(
            program, call, lambda *args, call=call, original=original: (events.append(call), original(*args))[1]
        )
    engine.add(make_request("a", [1, 2, 3], max_tokens=4))
    outputs = [[output.token_ids for output in engine.step().outputs] for _ in range(5)]
    token_ids = run_alone(make_request("a", [1, 2, 3], max_tokens=4))[0]
    assert outputs == [[], *([[token_id]] for token_id in token_ids)]
    assert events == ["launch", *["launch", "finish"] * 3, "finish"]
    assert not engine.has_work


def test_an_end_that_is_foreseen_costs_no_row() -> None:
    engine = make(make_scheduler(max_model_len=9))
    engine.add(make_request("a", [1, 2, 3], max_tokens=4))
    engine.add(make_request("b", [4, 5, 6], max_tokens=99))
    transcript = run_to_end(engine)
    assert [len(transcript.token_ids[name]) for name in "ab"] == [4, 6]
    assert count_rows(program_of(engine)) == {2: 4, 1: 2}
    assert engine.stats().num_steps == 6


def test_an_end_that_nobody_foresees_costs_one_row_at_most() -> None:
    endless = [make_request(f"r{i}", [i + 1] * (i + 1)) for i in range(6)]
    requests = [structs.replace(request, stop_token_ids=[run_alone(request)[0][3]]) for request in endless]
    engine = make()
    for request in requests:
        engine.add(request)
    transcript = run_to_end(engine)
    assert {end.finish_reason for end in transcript.ends.values()} == {"stop"}
    num_rows = sum(size * count for size, count in count_rows(program_of(engine)).items())
    assert num_rows == sum(map(len, transcript.token_ids.values())) + len(requests)


def test_work_is_left_while_a_step_is_under_way_that_nobody_waits_for() -> None:
    scheduler = make_scheduler(use_prefix_cache=False)
    engine = make(scheduler)
    engine.add(make_request("a", [1, 2, 3]))
    engine.step()
    engine.abort("a")
    assert scheduler.block_pool.num_free == scheduler.block_pool.num_blocks
    (output,) = engine.step().outputs
    assert (output.request_id, output.finish_reason) == ("a", "abort")
    assert not program_of(engine).under_way
    assert not engine.has_work


def test_another_request_may_have_the_name_of_one_whose_row_is_under_way() -> None:
    engine = make()
    engine.add(make_request("a", [1, 2, 3]))
    engine.step()
    engine.abort("a")
    again = make_request("a", [4, 5, 6, 7])
    engine.add(again)
    (output,) = engine.step().outputs
    assert output.finish_reason == "abort"
    engine._scheduler.check()
    assert run_to_end(engine).result("a") == run_alone(again)


def test_a_prefix_that_is_under_way_is_computed_once() -> None:
    scheduler = make_scheduler(num_blocks=600, max_batch_tokens=2048, max_model_len=2000)
    engine = make(scheduler)
    shared = [i % 50 for i in range(1000)]
    for i in range(8):
        engine.add(make_request(f"r{i}", shared + [i] * 32, max_tokens=1))
    run_to_end(engine)
    assert program_of(engine).num_tokens == 1000 + 8 * 32


def test_prompts_are_scored_ahead() -> None:
    scheduler = make_full_scheduler(num_score_rows=2)
    engine = make(scheduler)
    request = make_request("a", SHARED, num_prompt_logprobs=2)
    engine.add(request)
    assert run_fully(engine).result("a") == run_fully_alone(request)
    assert len(program_of(engine).launched) == engine.stats().num_steps


@pytest.mark.parametrize(
    "fields", [{"presence_penalty": 1.0}, {"min_tokens": 9, "stop_token_ids": [1]}, {"grammar": hashed_grammar(6)}]
)
def test_a_step_with_edits_is_computed_with_nothing_under_way(
    fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make(make_scheduler(max_chunk_tokens=4))
    program, num_edited = program_of(engine), 0
    sample = program.sample

    def count_edited(inputs: SamplingInputs) -> Any:
        nonlocal num_edited
        num_edited += inputs.edits is not None
        assert inputs.edits is None or not program.under_way
        return sample(inputs)

    monkeypatch.setattr(program, "sample", count_edited)
    edited, plain = make_request("edited", SHARED, max_tokens=6, **fields), make_request("plain", [1], max_tokens=20)
    engine.add(plain)
    engine.add(edited)
    transcript = run_fully(engine)
    for request in (edited, plain):
        assert transcript.result(request.request_id) == run_fully_alone(request)
    assert num_edited > 0
    assert len(program.launched) == engine.stats().num_steps - 6, "what is not edited is launched"


# -- faults -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["launch", "device"])
@on_all_devices
@SCHEDULES
def test_a_fault_that_passes_is_not_seen(
    options: dict[str, Any], device: str, place: str, alone: dict[str, tuple[Any, ...]]
) -> None:
    """One in every five steps; a request that it hits goes on as if nothing had been."""
    scheduler = make_scheduler(**{"max_model_len": 70, **options})
    engine = make(scheduler, device)
    program, transcript, num_faults = program_of(engine), FullTranscript(), 0
    for request in workload():
        engine.add(request)
    for step in range(5000):
        if not engine.has_work:
            break
        if step % 5 == 2:
            num_faults += not program.fail_next
            program.fail_next = place
        transcript.add(engine.step().outputs)
        scheduler.check()
    for request in workload():
        assert transcript.result(request.request_id) == alone[request.request_id]
    assert program.num_steps > 4 * num_faults > 4
    assert scheduler.block_pool.num_available == scheduler.block_pool.num_blocks


@on_all_devices
@pytest.mark.parametrize("max_batch_tokens", [64, 5])
def test_a_request_that_makes_a_launched_step_fail_ends_alone(max_batch_tokens: int, device: str) -> None:
    scheduler = make_scheduler(max_batch_tokens=max_batch_tokens)
    engine = make(scheduler, device, poison_token=POISON)
    for request in plain_requests():
        engine.add(request)
    engine.add(make_request("poison", [1, 1, POISON, 1, 1, 1, 1, 1, 1]))
    transcript = run_to_end(engine)
    assert "poison" in (transcript.ends["poison"].error or "")
    for request in plain_requests():
        assert transcript.result(request.request_id) == run_alone(request)
    scheduler.check()


@on_all_devices
def test_a_token_that_was_not_known_when_it_was_computed_may_be_the_poison(device: str) -> None:
    request = make_request("poison", SHARED, max_tokens=9)
    token_ids = run_alone(request)[0]
    poison = next(token_id for token_id in token_ids[2:] if token_id not in SHARED)
    others = [make_request(f"r{i}", [i + 1] * 5, max_tokens=9) for i in range(3)]
    others = [other for other in others if poison not in other.prompt_ids + run_alone(other)[0]]
    scheduler = make_scheduler()
    engine = make(scheduler, device, poison_token=poison)
    for added in (request, *others):
        engine.add(added)
    transcript = run_to_end(engine)
    assert transcript.token_ids["poison"] == token_ids[: token_ids.index(poison) + 1]
    assert "poison" in (transcript.ends["poison"].error or "")
    assert others
    for other in others:
        assert transcript.result(other.request_id) == run_alone(other)
    scheduler.check()


@on_all_devices
def test_a_request_whose_logits_are_nan_ends_alone_and_its_next_row_is_nothing(device: str) -> None:
    scheduler = make_scheduler(max_chunk_tokens=4)
    engine = make(scheduler, device, nan_token=POISON)
    for request in plain_requests():
        engine.add(request)
    engine.add(make_request("nan", [9] * 8 + [POISON]))
    transcript = run_to_end(engine)
    assert (transcript.token_ids["nan"], transcript.ends["nan"].finish_reason) == ([], "error")
    for request in plain_requests():
        assert transcript.result(request.request_id) == run_alone(request)
    engine.add(make_request("again", [9] * 12, max_tokens=1))
    assert run_to_end(engine).ends["again"].num_cached_tokens == 0, "what it computed is trusted"
    scheduler.check()


@on_all_devices
def test_after_a_program_that_fails_in_everything_the_engine_goes_on(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = make_scheduler(use_prefix_cache=False)
    engine = make(scheduler, device)
    engine.add(make_request("a", [1, 2, 3]))
    engine.add(make_request("b", [4, 5, 6]))
    engine.step()
    program = program_of(engine)

    def fail(*args: Any) -> None:
        raise MemoryError("out of memory")

    with monkeypatch.context() as broken:
        broken.setattr(FakeLookaheadProgram, "launch", fail)
        broken.setattr(FakeLookaheadProgram, "forward", fail)
        broken.setattr(program.under_way[0], "collect", fail)
        outputs = engine.step().outputs
    program.under_way.clear()
    assert [(o.request_id, o.finish_reason) for o in outputs] == [("a", "error"), ("b", "error")]
    assert all("out of memory" in (output.error or "") for output in outputs)
    assert engine.stats().num_free_blocks == engine.stats().num_total_blocks
    again = make_request("a", [1, 2, 3])
    engine.add(again)
    assert run_to_end(engine).result("a") == run_alone(again)


def test_samples_that_cannot_be_read_end_their_request_only(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make()
    program = program_of(engine)
    sample = program.sample

    def without_tops(inputs: SamplingInputs) -> Any:
        output = sample(inputs)
        output.top_ids = []
        return output

    plain, top = make_request("plain", [1, 2, 3]), make_request("top", [4, 5, 6], num_logprobs=2)
    monkeypatch.setattr(program, "sample", without_tops)
    engine.add(plain)
    engine.add(top)
    transcript = run_to_end(engine)
    assert (transcript.token_ids["top"], transcript.ends["top"].finish_reason) == ([], "error")
    assert transcript.result("plain") == run_alone(plain)
    engine._scheduler.check()


# -- everything at once -------------------------------------------------------------------------------------


class LookaheadMachine(EngineMachine):
    """With faults that pass, tokens that make a step raise, and tokens whose logits are NaN."""

    @initialize(
        device=st.sampled_from(sorted(DEVICES)),
        bad_tokens=st.fixed_dictionaries(
            {}, optional={"nan_token": st.integers(0, 49), "poison_token": st.integers(0, 49)}
        ),
        **LIMITS,
    )
    def start(self, device: str, bad_tokens: dict[str, int], **options: Any) -> None:
        self.device, self.bad_tokens = device, bad_tokens
        super().start(**options)

    def make_engine(self) -> Engine:
        return make_lookahead_engine(self.scheduler, self.compiler, **DEVICES[self.device], **self.bad_tokens)

    def progress(self) -> int:
        return super().progress() + len(self.program.launched) + len(self.program.collected)

    @rule(place=st.sampled_from(["launch", "device"]))
    def fail(self, place: str) -> None:
        self.program.fail_next = place

    def teardown(self) -> None:
        super().teardown()
        assert not hasattr(self, "program") or not self.program.under_way


LookaheadMachine.TestCase.settings = SETTINGS
TestLookaheadMachine = LookaheadMachine.TestCase
