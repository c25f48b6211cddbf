from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from roseinfer.core.batch import ForwardInputs, SampleOutput, SamplingInputs
from tests.fake_engine import make_engine, make_request, make_scheduler, run_alone, run_to_end

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
