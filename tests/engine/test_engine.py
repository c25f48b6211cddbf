from __future__ import annotations

import threading
from typing import Any

import msgspec
import numpy as np
import pytest

from roseinfer.core.batch import ForwardInputs, SampleOutput, SamplingInputs, UInt32Array
from roseinfer.core.messages import Grammar
from roseinfer.engine.engine import Engine
from tests.fake_engine import make_engine, make_program, make_request, make_scheduler, run_alone, run_to_end
from tests.fake_grammars import BAD_GRAMMAR, FakeCompiler, FakeConstraint, hashed_grammar
from tests.full_engine import FullTranscript, make_full_engine, make_full_scheduler, run_fully, run_fully_alone

BAD_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"prompt_ids": []}, "empty"),
    ({"prompt_ids": [1, 50]}, "50 is not in the vocabulary"),
    ({"prompt_ids": [1, -1]}, "-1 is not in the vocabulary"),
    ({"prompt_ids": [1, 2**70]}, "prompt"),
    ({"prompt_ids": [1, 2**63]}, "prompt"),
    ({"prompt_ids": [1.5]}, "list of token ids"),
    ({"prompt_ids": ["a"]}, "list of token ids"),
    ({"prompt_ids": [[1, 2], [3]]}, "list of token ids"),
    ({"prompt_ids": [[1, 2], [3, 4]]}, "list of token ids"),
    ({"prompt_ids": None}, "list of token ids"),
    ({"prompt_ids": [1] * 128}, "128 tokens, but the context length is 128"),
    ({"output_ids": [50]}, "output_ids"),
    ({"output_ids": [1] * 127}, "130 tokens"),
    ({"stop_token_ids": [50]}, "stop_token_ids"),
    ({"stop_token_ids": [1] * 129}, "stop_token_ids"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 1.0}, "max_tokens"),
    ({"temperature": float("nan")}, "temperature"),
    ({"temperature": float("inf")}, "temperature"),
    ({"temperature": -0.5}, "temperature"),
    ({"top_k": -1}, "top_k"),
    ({"top_k": 2**31}, "top_k"),
    ({"top_p": 0.0}, "top_p"),
    ({"top_p": 1e39}, "top_p"),
    ({"min_p": 1.5}, "min_p"),
    ({"seed": -1}, "seed"),
    ({"seed": 2**64}, "seed"),
    ({"choice": -1}, "choice"),
    ({"choice": 2**31}, "choice"),
    ({"num_logprobs": -2}, "num_logprobs"),
    ({"num_logprobs": 51}, "num_logprobs"),
    ({"num_prompt_logprobs": -2}, "num_prompt_logprobs"),
    ({"num_prompt_logprobs": 21}, "prompt_logprobs"),
    ({"min_tokens": -1}, "min_tokens"),
    ({"min_tokens": 2.0}, "min_tokens"),
    ({"presence_penalty": 2.5}, "presence_penalty"),
    ({"presence_penalty": float("nan")}, "presence_penalty"),
    ({"frequency_penalty": float("-inf")}, "frequency_penalty"),
    ({"repetition_penalty": 0.0}, "repetition_penalty"),
    ({"repetition_penalty": 1e39}, "repetition_penalty"),
    ({"logit_bias": {50: 1.0}}, "logit_bias: 50 is not in the vocabulary"),
    ({"logit_bias": {-1: 1.0}}, "logit_bias: -1 is not in the vocabulary"),
    ({"logit_bias": {1: 1e39}}, "logit_bias"),
    ({"logit_bias": {1: float("nan")}}, "logit_bias"),
    ({"allowed_token_ids": [1, 50]}, "allowed_token_ids: 50"),
    ({"allowed_token_ids": [1] * 51}, "allowed_token_ids"),
    ({"bad_words_ids": [[1], [2, 50]]}, "bad_words: 50"),
    ({"bad_words_ids": [[]]}, "bad_words"),
    ({"bad_words_ids": [[1]] * 129}, "bad_words"),
    ({"bad_words_ids": [[1] * 65]}, "bad_words"),
    ({"grammar": Grammar("regex", "a" * 1025)}, "regex must be at most 1024 bytes"),
    ({"priority": 2**40}, "priority"),
    ({"cache_salt": "a" * 257}, "cache_salt"),
]


@pytest.mark.parametrize(("fields", "message"), BAD_FIELDS)
def test_a_bad_request_is_refused_at_the_door_and_touches_no_other(fields: dict[str, Any], message: str) -> None:
    engine = make_engine()
    good = make_request("good", [1, 2, 3])
    engine.add(good)
    engine.add(msgspec.structs.replace(make_request("bad", [1, 2, 3]), **fields))
    transcript = run_to_end(engine)
    end = transcript.ends["bad"]
    assert (transcript.token_ids["bad"], end.finish_reason) == ([], "error")
    assert message in (end.error or "")
    assert transcript.result("good") == run_alone(good)


def test_the_field_to_blame_is_named() -> None:
    engine = make_engine()
    engine.add(make_request("a", [1], bad_words_ids=[[50]]))
    engine.add(make_request("b", [1], cache_salt=None))
    a, b = engine.step().outputs
    assert (a.finish_reason, a.error_param) == ("error", "bad_words")
    assert (b.finish_reason, b.error_param) == ("error", "cache_salt")


def test_min_tokens_above_what_is_left_of_the_context_is_no_fault() -> None:
    engine = make_engine()
    engine.add(make_request("a", [1, 2], max_tokens=3, min_tokens=9))
    transcript = run_to_end(engine)
    assert (len(transcript.token_ids["a"]), transcript.ends["a"].finish_reason) == (3, "length")


def test_a_prompt_that_can_never_fit_into_the_pool_is_refused() -> None:
    engine = make_engine(make_scheduler(num_blocks=5, block_size=4))
    engine.add(make_request("a", [1] * 20))
    engine.add(make_request("b", [1] * 19, max_tokens=50))
    transcript = run_to_end(engine)
    assert "the prompt has 20 tokens, but the context length is 20 tokens" in (transcript.ends["a"].error or "")
    assert len(transcript.token_ids["b"]) == 1
    assert transcript.ends["b"].finish_reason == "length"


def test_no_tokens_need_no_step() -> None:
    engine = make_engine()
    engine.add(make_request("a", [1, 2], max_tokens=0))
    assert engine.has_work
    (output,) = engine.step().outputs
    assert (output.token_ids, output.finish_reason) == ([], "length")
    assert engine.stats().num_steps == 0
    assert not engine.has_work


def test_an_id_that_is_added_twice_runs_once() -> None:
    engine = make_engine()
    request = make_request("a", [1, 2])
    engine.add(request)
    engine.add(make_request("a", [3, 4], max_tokens=1))
    assert run_to_end(engine).result("a") == run_alone(request)


def test_aborting_is_idempotent_and_frees_everything() -> None:
    engine = make_engine(make_scheduler(use_prefix_cache=False))
    engine.add(make_request("a", [1, 2], max_tokens=100))
    for _ in range(3):
        engine.step()
    for request_id in ("a", "a", "unknown"):
        engine.abort(request_id)
    (output,) = engine.step().outputs
    assert (output.request_id, output.finish_reason) == ("a", "abort")
    stats = engine.stats()
    assert (stats.num_running, stats.num_free_blocks) == (0, stats.num_total_blocks)
    assert not engine.has_work


def test_stats_count() -> None:
    engine = make_engine(make_scheduler(num_blocks=20, max_running=2))
    for i in range(3):
        engine.add(make_request(f"r{i}", [10 * i + j for j in range(6)]))
    engine.step()
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_steps, stats.num_preemptions) == (2, 1, 1, 0)
    assert (stats.num_free_blocks, stats.num_cached_blocks, stats.num_total_blocks) == (16, 0, 20)
    run_to_end(engine)
    stats = engine.stats()
    assert stats.num_free_blocks + stats.num_cached_blocks == 20
    assert stats.num_cached_blocks == 3 * (6 + 8 - 1) // 4


def test_stats_count_what_the_prefix_cache_was_asked_for() -> None:
    engine = make_engine()
    for request_id in ("a", "b"):
        engine.add(make_request(request_id, list(range(10))))
        run_to_end(engine)
    assert (engine.stats().num_prefix_queries, engine.stats().num_prefix_hits) == (20, 8)


def test_outputs_say_how_long_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 100.0
    monkeypatch.setattr("time.monotonic", lambda: clock)
    engine = make_engine(make_scheduler(max_batch_tokens=4, max_running=1))
    engine.add(make_request("a", [1, 2, 3], max_tokens=3))
    engine.add(make_request("b", [1, 2, 3, 4, 5], max_tokens=2, output_ids=[9]))
    times = []
    while engine.has_work:
        for output in engine.step().outputs:
            seconds = (output.queue_seconds, output.prefill_seconds, output.decode_seconds)
            times.append((output.request_id, *seconds))
        clock += 1.0
    assert times == [("a", 0.0, 0.0, 0.0), ("a", 0.0, 0.0, 0.0), ("a", 0.0, 0.0, 2.0), ("b", 3.0, 1.0, 0.0)]


# -- grammars -----------------------------------------------------------------------------------------------


def test_a_request_waits_for_its_grammar_and_others_do_not() -> None:
    compiler = FakeCompiler(is_slow=True)
    engine = make_full_engine(make_full_scheduler(), compiler)
    calls: list[str] = []
    engine.on_ready = lambda: calls.append("ready")
    constrained, plain = make_request("a", [1, 2], grammar=hashed_grammar(5)), make_request("b", [3, 4])
    engine.add(constrained)
    assert (engine.has_work, engine.stats().num_waiting) == (False, 1)
    engine.add(plain)
    assert run_fully(engine).result("b") == run_fully_alone(plain)
    assert (engine.has_work, calls) == (False, [])
    compiler.finish()
    assert (engine.has_work, calls) == (True, ["ready"])
    transcript = run_fully(engine)
    assert transcript.result("a") == run_fully_alone(constrained)
    assert (len(transcript.token_ids["a"]), transcript.ends["a"].stop_token_id) == (5, None)
    assert engine.stats().num_waiting == 0


def test_a_compiled_request_has_the_place_of_its_arrival() -> None:
    compiler = FakeCompiler(is_slow=True)
    engine = make_full_engine(make_full_scheduler(max_running=1), compiler)
    engine.add(make_request("running", [9]))
    engine.step()
    engine.add(make_request("first", [1], grammar=hashed_grammar(5)))
    engine.add(make_request("second", [2], grammar=hashed_grammar(5)))
    engine.add(make_request("third", [3]))
    compiler.finish(1)  # the second one's
    engine.step()
    compiler.finish()
    assert list(run_fully(engine).ends) == ["running", "first", "second", "third"]


def test_a_grammar_that_cannot_be_compiled_is_the_callers_fault() -> None:
    engine = make_full_engine(make_full_scheduler())
    engine.add(make_request("a", [1], grammar=BAD_GRAMMAR))
    (output,) = engine.step().outputs
    assert (output.finish_reason, output.error, output.error_param) == ("error", "this is no grammar", "grammar")
    assert not engine.has_work


def test_without_a_compiler_grammars_are_refused() -> None:
    engine = make_engine()
    engine.add(make_request("a", [1], grammar=hashed_grammar(5)))
    (output,) = engine.step().outputs
    assert (output.finish_reason, output.error_param) == ("error", "grammar")


def test_a_request_is_aborted_while_its_grammar_is_compiled() -> None:
    compiler = FakeCompiler(is_slow=True)
    engine = make_full_engine(make_full_scheduler(), compiler)
    request = make_request("a", [1], grammar=hashed_grammar(5))
    engine.add(request)
    engine.add(request)  # the second time is nothing
    engine.abort("a")
    engine.abort("a")
    (output,) = engine.step().outputs
    assert (output.request_id, output.finish_reason) == ("a", "abort")
    compiler.finish()
    assert not engine.has_work
    engine.add(request)
    compiler.finish()
    assert run_fully(engine).result("a") == run_fully_alone(request)


def test_a_constraint_that_refuses_what_was_accepted_before_ends_its_request() -> None:
    request = make_request("a", [1], grammar=hashed_grammar(5))
    refused = int(np.flatnonzero(~FakeConstraint(hashed_grammar(5), 50).allowed())[0])
    engine = make_full_engine(make_full_scheduler())
    engine.add(msgspec.structs.replace(request, output_ids=[refused]))
    (output,) = engine.step().outputs
    assert (output.finish_reason, output.error_param) == ("error", None)
    assert "not allowed" in (output.error or "")


def test_masks_are_filled_while_the_program_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the two waits for the other to have begun."""
    engine = make_full_engine(make_full_scheduler())
    is_computing, is_filling = threading.Event(), threading.Event()
    forward, fill_mask = engine._program.forward, FakeConstraint.fill_mask

    def slow_forward(inputs: ForwardInputs) -> None:
        is_computing.set()
        assert is_filling.wait(10)
        forward(inputs)

    def slow_fill_mask(constraint: FakeConstraint, row: UInt32Array) -> None:
        is_filling.set()
        assert is_computing.wait(10)
        fill_mask(constraint, row)

    request = make_request("a", [1, 2], grammar=hashed_grammar(3))
    with monkeypatch.context() as slow:
        slow.setattr(engine._program, "forward", slow_forward)
        slow.setattr(FakeConstraint, "fill_mask", slow_fill_mask)
        engine.add(request)
        transcript = run_fully(engine)
    assert transcript.result("a") == run_fully_alone(request)


def test_work_on_grammars_counts_as_progress() -> None:
    """Every token takes a mask, and a grammar that is started counts as well; the program here counts nothing."""
    scheduler, counter = make_full_scheduler(), np.zeros(1, np.uint64)
    engine = Engine(make_program(scheduler), scheduler, FakeCompiler(), counter)  # type: ignore[arg-type]
    for name in ("a", "b"):
        engine.add(make_request(name, [1], max_tokens=3, grammar=hashed_grammar(30)))
    engine.add(make_request("plain", [1], max_tokens=9))
    tokens = run_fully(engine).token_ids
    assert counter[0] == 2 + len(tokens["a"]) + len(tokens["b"]) > 4


def test_closing_ends_the_helpers() -> None:
    compiler = FakeCompiler()
    engine = make_full_engine(make_full_scheduler(), compiler)
    before = set(threading.enumerate())
    engine.add(make_request("a", [1], grammar=hashed_grammar(2)))
    run_fully(engine)
    (thread,) = set(threading.enumerate()) - before
    engine.close()
    assert compiler.is_closed
    assert not thread.is_alive()


@pytest.mark.parametrize("fails_in", ["mask", "accept"])
def test_a_constraint_that_fails_ends_its_request_alone(fails_in: str) -> None:
    scheduler = make_full_scheduler()
    engine = make_full_engine(scheduler)
    others = [make_request(f"r{i}", [i + 1] * 9, grammar=hashed_grammar(8)) for i in range(3)]
    engine.add(make_request("bad", [40] * 9, grammar=hashed_grammar(8, fails_in=fails_in, fails_at=4)))
    for request in others:
        engine.add(request)
    transcript = run_fully(engine)
    assert (len(transcript.token_ids["bad"]), transcript.ends["bad"].finish_reason) == (4, "error")
    assert f"{fails_in} failed" in (transcript.ends["bad"].error or "")
    for request in others:
        assert transcript.result(request.request_id) == run_fully_alone(request)
    assert engine.stats().num_steps == 8, "no step was computed again"
    scheduler.check()


def test_a_dead_end_ends_its_request_alone() -> None:
    engine = make_full_engine(make_full_scheduler())
    good = make_request("good", [1, 2], allowed_token_ids=[5, 6], min_tokens=3, stop_token_ids=[6])
    engine.add(make_request("dead", [1, 2], allowed_token_ids=[5], min_tokens=3, stop_token_ids=[5]))
    engine.add(good)
    transcript = run_fully(engine)
    assert transcript.ends["dead"].finish_reason == "error"
    assert (
        transcript.ends["dead"].error
        == "everything is forbidden that could come next, by allowed_token_ids, min_tokens"
    )
    assert transcript.ends["dead"].error_param == "allowed_token_ids"
    assert transcript.result("good") == run_fully_alone(good)


# -- faults -------------------------------------------------------------------------------------------------

POISON = 49


def neighbours() -> list[Any]:
    return [make_request(f"r{i}", [i + 1] * (i + 1), max_tokens=6, stop_token_ids=[POISON]) for i in range(6)]


@pytest.mark.parametrize("max_batch_tokens", [64, 5])
def test_a_request_that_makes_a_step_raise_ends_alone(max_batch_tokens: int) -> None:
    scheduler = make_scheduler(max_batch_tokens=max_batch_tokens)
    engine = make_engine(scheduler, poison_token=POISON)
    for request in neighbours():
        engine.add(request)
    engine.add(make_request("poison", [1, 1, POISON, 1, 1, 1, 1, 1, 1]))
    transcript = run_to_end(engine)
    assert "poison" in (transcript.ends["poison"].error or "")
    for request in neighbours():
        assert transcript.result(request.request_id) == run_alone(request)
    scheduler.check()


def test_a_step_that_is_computed_again_keeps_wishes() -> None:
    """Masks, histories and prompts' logprobs are those of the step that failed."""
    scheduler = make_full_scheduler(num_score_rows=12)
    engine = make_full_engine(scheduler, poison_token=POISON)
    wishes: list[dict[str, Any]] = [
        {"grammar": hashed_grammar(5), "allowed_token_ids": list(range(49))},
        {"presence_penalty": 1.0, "logit_bias": {3: 5.0, POISON: -100.0}},
        {"num_prompt_logprobs": 2, "bad_words_ids": [[POISON]]},
    ]
    requests = [make_request(f"r{i}", [i + 1] * 30, **fields) for i, fields in enumerate(wishes)]
    for request in requests:
        engine.add(request)
    transcript = FullTranscript()
    for i in range(6):
        engine.add(make_request(f"poison{i}", [i, POISON]))
        transcript.add(engine.step().outputs)
    rest = run_fully(engine)
    assert {transcript.ends[f"poison{i}"].finish_reason for i in range(6)} == {"error"}
    for request in requests:
        alone = run_fully_alone(request)
        token_ids = [*transcript.token_ids.get(request.request_id, []), *rest.token_ids.get(request.request_id, [])]
        assert token_ids == alone[0]
        first = transcript.firsts.get(request.request_id) or rest.firsts[request.request_id]
        assert first.prompt_logprobs == alone[-1]
    scheduler.check()


def test_a_request_whose_logits_are_nan_ends_alone() -> None:
    scheduler = make_scheduler()
    engine = make_engine(scheduler, nan_token=POISON)
    for request in neighbours():
        engine.add(request)
    engine.add(make_request("nan", [1, 2, 3, 4, POISON]))
    transcript = run_to_end(engine)
    assert transcript.ends["nan"].finish_reason == "error"
    for request in neighbours():
        assert transcript.result(request.request_id) == run_alone(request)
    scheduler.check()


@pytest.mark.parametrize("method", ["forward", "sample"])
def test_after_a_step_that_failed_for_all_the_engine_goes_on(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = make_scheduler(use_prefix_cache=False)
    engine = make_engine(scheduler)
    engine.add(make_request("a", [1, 2, 3]))
    engine.add(make_request("b", [4, 5, 6]))
    engine.step()

    def fail(inputs: ForwardInputs | SamplingInputs) -> None:
        raise MemoryError("out of memory")

    with monkeypatch.context() as broken:
        broken.setattr(engine._program, method, fail)
        outputs = engine.step().outputs
    assert [(o.request_id, o.finish_reason) for o in outputs] == [("a", "error"), ("b", "error")]
    assert all("out of memory" in (output.error or "") for output in outputs)
    scheduler.check()
    assert engine.stats().num_free_blocks == engine.stats().num_total_blocks
    again = make_request("a", [1, 2, 3])
    engine.add(again)
    assert run_to_end(engine).result("a") == run_alone(again)


def test_output_that_cannot_be_read_ends_its_request_only(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()
    engine.add(make_request("plain", [1, 2, 3]))
    engine.add(make_request("top", [4, 5, 6], num_logprobs=2))

    def sample(inputs: SamplingInputs) -> SampleOutput:
        return SampleOutput(np.array([7, 8], np.int32), np.zeros(2, np.float32))  # without the top ids asked for

    monkeypatch.setattr(engine._program, "sample", sample)
    plain, top = engine.step().outputs
    assert (plain.token_ids, plain.finish_reason) == ([7], None)
    assert (top.token_ids, top.finish_reason) == ([], "error")
    engine._scheduler.check()
