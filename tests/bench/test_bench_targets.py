"""The engine as a target, without HTTP."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from roseinfer.bench.load import run_workload
from roseinfer.bench.metrics import Run
from roseinfer.bench.targets import EngineTarget
from roseinfer.bench.workloads import Workload
from roseinfer.core.errors import ContextLengthError
from roseinfer.inference_engine import InferenceEngine
from tests.fake_model import MAX_MODEL_LEN, RecitingProgram, fake_engine


def measure(engine: InferenceEngine, workload: Workload) -> Run:
    async def go() -> Run:
        target = EngineTarget(engine)
        await target.open(workload.concurrency)
        prompts = await target.prompts.make(workload, Random(0))
        return await run_workload(target, workload, prompts, Random(0))

    with engine:
        return asyncio.run(go())


def test_it_is_timed_by_tokens() -> None:
    program = RecitingProgram()
    program.step_seconds = 0.002
    workload = Workload(name="x", num_requests=6, input_len=20, output_len=9, concurrency=3)
    run = measure(fake_engine(program), workload)
    assert len(run.complete) == 6
    for request in run.complete:
        assert (request.num_input_tokens, request.num_output_tokens, request.num_cached_tokens) == (20, 9, 0)
        assert len(request.chunk_times) == 9
        assert request.counted_by == "engine"
        assert request.end == request.chunk_times[-1]
        assert request.tpot is not None
        assert request.tpot >= 0.002
    assert max(program.num_rows) == 3
    assert run.server is not None


def test_the_end_of_text_does_not_end_it() -> None:
    """The story has a full stop, behind which the model says EOS, within these tokens."""
    run = measure(fake_engine(), Workload(name="x", input_len=4, output_len=80))
    assert run.complete[0].num_output_tokens == 80


def test_a_full_queue_is_an_error_of_the_request() -> None:
    program = RecitingProgram()
    program.step_seconds = 0.01
    run = measure(fake_engine(program, max_running=1, max_queue=0), Workload(name="x", num_requests=2, concurrency=2))
    assert run.errors == ["1 requests are running or waiting"]
    assert len(run.complete) == 1


def test_a_fault_of_the_engine_is_an_error_of_the_request() -> None:
    program = RecitingProgram()
    program.failure = RuntimeError("broken kernel")
    (error,) = measure(fake_engine(program), Workload(name="x")).errors
    assert "broken kernel" in error


def test_a_prompt_that_never_fits_ends_the_benchmark() -> None:
    with pytest.raises(ContextLengthError, match=str(MAX_MODEL_LEN)):
        measure(fake_engine(), Workload(name="x", input_len=MAX_MODEL_LEN + 1))
