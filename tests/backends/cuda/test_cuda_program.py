"""The CUDA program keeps its contract: padding, pending tokens, logit rows, memory, faults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from roseinfer.backends import LookaheadProgram, ProgramOptions
from roseinfer.backends.cuda import choose_kv_dtype, graphs, kv_block_bytes, memory
from roseinfer.backends.cuda.inputs import InputStage, context_of, padded_decode
from roseinfer.backends.cuda.kernels import library_linear
from roseinfer.backends.cuda.program import CudaProgram
from roseinfer.checkpoints import open_checkpoint
from roseinfer.core.batch import ForwardInputs, SamplingInputs, ScoreInputs
from roseinfer.core.errors import ConfigError, DeviceLostError, EngineError
from roseinfer.models import Model, load_model
from tests import tiny_models
from tests.harness import Driver, Row, compile_model, with_options
from tests.tiny_models import TinyModel

RANDOM = np.random.default_rng(3)
SEQUENCES = [RANDOM.integers(0, tiny_models.VOCAB_SIZE, n).tolist() for n in (21, 9, 14)]
OPTIONS = with_options(max_batch_tokens=64, max_logit_rows=64, num_blocks=12)


@pytest.fixture(scope="module")
def model(tiny_model: Callable[[str], TinyModel]) -> Model:
    return load_model(open_checkpoint(tiny_model("llama").path))


@pytest.fixture(scope="module")
def program(model: Model) -> CudaProgram:
    made = compile_model("cuda", model, OPTIONS)
    assert isinstance(made, CudaProgram)
    return made


def greedy(num_rows: int, position: int) -> SamplingInputs:
    zeros = np.zeros(num_rows, dtype=np.float32)
    return SamplingInputs(
        rows=np.arange(num_rows, dtype=np.int32),
        temperatures=zeros,
        top_ks=zeros.astype(np.int32),
        top_ps=zeros + 1,
        min_ps=zeros,
        seeds=zeros.astype(np.uint64),
        choices=zeros.astype(np.int32),
        positions=np.full(num_rows, position, dtype=np.int64),
        num_logprobs=zeros.astype(np.int32) - 1,
    )


def decode_inputs(num_rows: int, position: int, num_columns: int = 2) -> ForwardInputs:
    """Rows at one position, with blocks of their own."""
    return ForwardInputs(
        token_ids=np.arange(num_rows, dtype=np.int32),
        positions=np.full(num_rows, position, dtype=np.int32),
        row_offsets=np.arange(num_rows + 1, dtype=np.int32),
        block_tables=np.arange(num_rows * num_columns, dtype=np.int32).reshape(num_rows, num_columns),
        logit_rows=np.arange(num_rows, dtype=np.int32),
    )


# -- inputs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_rows", "size"), [(1, 1), (3, 4), (9, 16), (17, 24), (60, 64), (63, 63)])
def test_decode_steps_have_few_sizes(num_rows: int, size: int) -> None:
    padded = padded_decode(decode_inputs(num_rows, 5), max(size, num_rows))
    assert padded.num_tokens == len(padded.logit_rows) == len(padded.block_tables) == size
    assert (padded.positions[num_rows:] == -1).all()
    assert (padded.block_tables[num_rows:] == -1).all()
    assert padded.positions[:num_rows].tolist() == [5] * num_rows


@pytest.mark.parametrize(("position", "context"), [(0, 256), (255, 256), (256, 1024), (1023, 1024), (1024, 4096)])
def test_contexts_have_few_sizes(position: int, context: int) -> None:
    inputs = decode_inputs(1, position, num_columns=position // 16 + 1)
    assert context_of(inputs) == context
    assert padded_decode(inputs, 8).block_tables.shape == (1, context // 16)


def test_inputs_arrive_as_they_were_sent(model: Model) -> None:
    stage = InputStage(torch.device("cpu"), 8)
    inputs = Driver(compile_model("cuda", model, OPTIONS), OPTIONS).inputs(list(map(Row, SEQUENCES)), [21, 1, 14])
    step, has_moved = stage.put(inputs, [32])
    assert has_moved  # there was no room for them
    for name in ("token_ids", "positions", "row_offsets", "logit_rows", "block_tables"):
        np.testing.assert_array_equal(getattr(step, name).cpu().numpy(), getattr(inputs, name))
    assert step.token_rows.tolist() == [0] * 21 + [1] + [2] * 14
    assert step.tiles[32].starts.tolist() == [0, 21, 22]
    assert not stage.put(inputs, [32])[1]


# -- steps --------------------------------------------------------------------------------------------------------


def test_only_the_logit_rows_are_computed(program: CudaProgram) -> None:
    inputs = Driver(program, OPTIONS).inputs([Row(SEQUENCES[0])], [21])
    program.forward(inputs)
    whole = program.logits()
    program.forward(replace(inputs, logit_rows=np.array([3, 20], dtype=np.int32)))
    np.testing.assert_array_equal(program.logits(), whole[[3, 20]])


def test_a_launch_is_a_forward_a_sample_and_a_score(program: CudaProgram) -> None:
    assert isinstance(program, LookaheadProgram)
    inputs = Driver(program, OPTIONS).inputs([Row(SEQUENCES[0])], [21])
    known = np.array(SEQUENCES[0][1:], dtype=np.int32)
    scoring = ScoreInputs(np.arange(20, dtype=np.int32), known, np.full(20, 2, dtype=np.int32))
    sampling = replace(greedy(1, 21), rows=np.array([20], dtype=np.int32), num_logprobs=np.array([3], dtype=np.int32))
    samples, scores = program.launch(inputs, sampling, scoring).collect()
    program.forward(inputs)
    logits = program.logits()
    for ours, theirs in ((samples, program.sample(sampling)), (scores, program.score(scoring))):
        assert ours is not None
        np.testing.assert_array_equal(ours.token_ids, theirs.token_ids)
        np.testing.assert_array_equal(ours.logprobs, theirs.logprobs)
        np.testing.assert_array_equal(ours.top_ids, theirs.top_ids)
    assert samples is not None
    assert samples.token_ids.tolist() == [logits[20].argmax()]


def test_a_step_may_go_on_with_tokens_that_the_host_does_not_know(program: CudaProgram) -> None:
    driver = Driver(program, OPTIONS)
    rows = [Row(SEQUENCES[0]), Row(SEQUENCES[1])]
    inputs = driver.inputs(rows, [21, 9])
    program.forward(replace(inputs, logit_rows=np.array([20, 29], dtype=np.int32)))
    first = program.sample(greedy(2, 21)).token_ids
    for row, token_id in zip(rows, first.tolist(), strict=True):
        row.num_computed, row.token_ids = len(row.token_ids), [*row.token_ids, token_id]
    following = driver.inputs(rows, [1, 1])
    program.forward(following)
    expected = program.sample(greedy(2, 22)).token_ids

    launched = program.launch(replace(inputs, logit_rows=np.array([20, 29], dtype=np.int32)), greedy(2, 21), None)
    unknown = replace(following, token_ids=np.array([-1, -2], dtype=np.int32))
    ahead = program.launch(unknown, greedy(2, 22), None)
    samples, _ = launched.collect()
    assert samples is not None
    np.testing.assert_array_equal(samples.token_ids, first)
    samples, _ = ahead.collect()
    assert samples is not None
    np.testing.assert_array_equal(samples.token_ids, expected)


def test_replays_read_what_the_step_brings(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a capture keeps are addresses: here the same launches again, with the tensors of the step captured."""
    captured = compile_model("cuda", model, OPTIONS)
    plain = compile_model("cuda", model, OPTIONS)
    monkeypatch.setattr(captured, "_graphs", graphs.DecodeGraphs(lambda run: run))
    for num_rows, position in ((4, 0), (4, 1), (3, 2), (2, 3), (3, 3)):
        inputs = decode_inputs(num_rows, position)
        captured.forward(inputs)
        plain.forward(inputs)
        np.testing.assert_array_equal(captured.logits(), plain.logits())
    assert len(captured._graphs) == 1  # of four rows; the step of two came once


def test_a_warm_up_stores_nothing(model: Model) -> None:
    warmed = compile_model("cuda", model, replace(OPTIONS, max_batch_tokens=17))
    inputs = decode_inputs(2, 0)
    warmed.forward(inputs)
    before = warmed.logits()
    warmed.forward(replace(inputs, positions=np.ones(2, dtype=np.int32)))
    second = warmed.logits()
    warmed.warm_up()
    warmed.forward(inputs)
    np.testing.assert_array_equal(warmed.logits(), before)
    warmed.forward(replace(inputs, positions=np.ones(2, dtype=np.int32)))
    np.testing.assert_array_equal(warmed.logits(), second)


# -- memory -------------------------------------------------------------------------------------------------------


def test_the_cache_grows_by_slabs(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    block_bytes = kv_block_bytes(model.graph.attention_specs, "float32")
    monkeypatch.setattr(memory, "SLAB_BYTES", 4 * block_bytes)
    made = compile_model("cuda", model, OPTIONS)
    assert made.memory()["kv_cache"] == 12 * block_bytes
    assert [made.reserve(n) for n in (1, 4, 5, 12, 99)] == [4, 4, 8, 12, 12]


def test_a_block_without_memory_is_an_error_and_nothing_is_written(
    program: CudaProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = decode_inputs(2, 0)
    program.forward(inputs)
    before = program.logits()
    with pytest.raises(EngineError, match="block 99 is used"):
        program.forward(replace(inputs, block_tables=np.array([[0], [99]], dtype=np.int32)))
    program.forward(inputs)
    np.testing.assert_array_equal(program.logits(), before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kv_dtype": "q8"}, "kv_dtype must be one of float32, bfloat16, float16 on the CUDA backend, got 'q8'"),
        ({"block_size": 32}, "block_size must be 16"),
    ],
)
def test_settings_that_it_does_not_have(model: Model, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compile_model("cuda", model, replace(OPTIONS, **changes))  # type: ignore[arg-type]


def test_a_model_that_does_not_fit_is_refused_before_it_serves(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: 1 << 20)
    with pytest.raises(ConfigError, match=r"has 0.00 GiB free, and .* are needed: weights .*; lower --kv-cache-memory"):
        compile_model("cuda", model, replace(OPTIONS, num_blocks=4096))


def test_running_out_of_memory_while_loading_is_one_clear_error(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(memory.Compiler, "compile", refuse)
    with pytest.raises(ConfigError, match="not enough for the weights and activations"):
        compile_model("cuda", model, OPTIONS)


@pytest.mark.parametrize(
    ("kv_dtype", "dtype", "chosen"),
    [("auto", "float32", "float32"), ("auto", "auto", "bfloat16"), ("float16", "bfloat16", "float16")],
)
def test_keys_and_values_have_the_type_that_is_multiplied(model: Model, kv_dtype: str, dtype: str, chosen: str) -> None:
    assert choose_kv_dtype(kv_dtype, dtype, "", model.weights) == chosen


# -- faults -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [torch.AcceleratorError("gone"), RuntimeError("Triton Error [CUDA]: gone")])
def test_a_device_that_fails_ends_the_engine_and_no_request(
    program: CudaProgram, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(step: object) -> None:
        raise error

    monkeypatch.setattr(program, "_run", fail)
    with pytest.raises(DeviceLostError, match="gone"):
        program.launch(decode_inputs(2, 0), greedy(2, 1), None)


def test_other_faults_are_the_steps(program: CudaProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(step: object) -> None:
        raise RuntimeError("one shape is wrong")

    monkeypatch.setattr(program, "_run", fail)
    with pytest.raises(RuntimeError, match="one shape"):
        program.launch(decode_inputs(2, 0), greedy(2, 1), None)


def test_the_watchdog_sees_every_operation(model: Model) -> None:
    counter = np.zeros(1, dtype=np.uint64)
    options: ProgramOptions = replace(OPTIONS, progress_counter=counter)
    watched = compile_model("cuda", model, options)
    watched.forward(decode_inputs(1, 0))
    assert counter[0] > 10


def test_fast_differs_in_the_last_bits_only(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library_linear, "MIN_TOKENS", 4)
    inputs = Driver(compile_model("cuda", model, OPTIONS), OPTIONS).inputs([Row(SEQUENCES[0])], [21])
    plain, fast = (compile_model("cuda", model, replace(OPTIONS, fast=fast)) for fast in (False, True))
    plain.forward(inputs)
    monkeypatch.setattr("roseinfer.backends.cuda.compiler.linear", None)  # none of them is ours
    fast.forward(inputs)
    np.testing.assert_allclose(fast.logits(), plain.logits(), rtol=1e-4, atol=1e-4)


def test_closing_gives_the_memory_back(model: Model) -> None:
    made = compile_model("cuda", model, OPTIONS)
    made.forward(decode_inputs(2, 0))
    made.close()
    assert made._cache.num_bytes == 0
    made.close()
