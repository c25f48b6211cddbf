"""The torch backend keeps to its contract: any chunks and any neighbours give the same logits, and only through the
block tables.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from roseinfer.checkpoints import open_checkpoint
from roseinfer.core.batch import ForwardInputs
from roseinfer.core.errors import ConfigError
from roseinfer.models import Model, load_model
from tests import tiny_models
from tests.harness import (
    OPTIONS,
    Driver,
    Row,
    compile_model,
    teacher_forced_logits,
    teacher_forced_logits_batched,
    with_options,
)

RANDOM = np.random.default_rng(3)
SEQUENCES = [RANDOM.integers(0, tiny_models.VOCAB_SIZE, n).tolist() for n in (100, 37, 60)]
NAMES = ("llama", "mistral", "gemma3", "gpt2")


@pytest.fixture(params=NAMES)
def model(request: pytest.FixtureRequest, tiny_model) -> Model:
    return load_model(open_checkpoint(tiny_model(request.param).path))


@pytest.fixture
def llama(tiny_model) -> Model:
    return load_model(open_checkpoint(tiny_model("llama").path))


def assert_close(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("chunk_sizes", [[60, *[1] * 40], [16], [17, 1, 5]])
def test_chunked_equals_unchunked(model: Model, chunk_sizes: list[int]) -> None:
    whole = teacher_forced_logits(compile_model("torch", model), SEQUENCES[0], [100])
    assert_close(teacher_forced_logits(compile_model("torch", model), SEQUENCES[0], chunk_sizes), whole)


def test_batched_equals_alone(model: Model) -> None:
    program = compile_model("torch", model)
    together = teacher_forced_logits_batched(program, SEQUENCES, [[50, 7], [1], [13]])
    for sequence, logits in zip(SEQUENCES, together, strict=True):
        assert_close(teacher_forced_logits(compile_model("torch", model), sequence, [len(sequence)]), logits)


def test_float64_is_closer_to_itself_than_float32(llama: Model) -> None:
    double = with_options(dtype="float64", kv_dtype="float64")
    whole, chunked = (
        teacher_forced_logits(compile_model("torch", llama, double), SEQUENCES[0], c) for c in ([100], [7])
    )
    np.testing.assert_allclose(whole, chunked, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kv_dtype", ["float16", "bfloat16"])
def test_half_precision_keys_and_values_are_near(llama: Model, kv_dtype: str) -> None:
    exact = teacher_forced_logits(compile_model("torch", llama), SEQUENCES[1], [37])
    rounded = teacher_forced_logits(compile_model("torch", llama, with_options(kv_dtype=kv_dtype)), SEQUENCES[1], [5])
    difference = np.abs(rounded - exact).max()
    assert 0 < difference < 0.5


def test_only_the_logit_rows_are_computed(llama: Model) -> None:
    program = compile_model("torch", llama)
    whole = teacher_forced_logits(program, SEQUENCES[1], [37])
    inputs = Driver(program).inputs([Row(SEQUENCES[1])], [37])
    program.forward(replace(inputs, logit_rows=np.array([3, 36], dtype=np.int32)))
    assert_close(program.logits(), whole[[3, 36]])
    program.forward(replace(inputs, logit_rows=np.array([], dtype=np.int32)))
    assert program.logits().shape == (0, program.vocab_size)


def test_rows_may_share_the_blocks_of_a_prefix(llama: Model) -> None:
    program = compile_model("torch", llama)
    driver = Driver(program)
    first, expected = Row(SEQUENCES[0]), teacher_forced_logits(compile_model("torch", llama), SEQUENCES[0], [100])
    driver.step([first], [40])
    second = Row(SEQUENCES[0], num_computed=32, blocks=first.blocks[:2])
    _, logits = driver.step([first, second], [8, 20])
    assert_close(logits, expected[32:52])


def test_memory_that_was_never_written_poisons_the_logits(llama: Model) -> None:
    driver = Driver(compile_model("torch", llama))
    row = Row(SEQUENCES[0])
    driver.step([row], [20])
    row.blocks = (driver.free_blocks.pop(), *row.blocks[1:])
    assert np.isnan(driver.step([row], [1])[0]).all()


def test_blocks_behind_every_window_may_be_given_back(tiny_model) -> None:
    model = load_model(open_checkpoint(tiny_model("mistral").path))
    expected = teacher_forced_logits(compile_model("torch", model), SEQUENCES[0], [100])
    driver = Driver(compile_model("torch", model))
    row = Row(SEQUENCES[0])
    driver.step([row], [80])
    row.blocks = (-1, -1, *row.blocks[2:])  # position 80 sees 41 and later
    assert_close(driver.step([row], [10])[0], expected[80:90])


def test_a_position_without_a_block_is_an_error(llama: Model) -> None:
    driver = Driver(compile_model("torch", llama))
    row = Row(SEQUENCES[0], blocks=(-1,))
    with pytest.raises(IndexError, match="no block"):
        driver.step([row], [10])


def test_steps_beyond_the_sizes_compiled_for_are_refused(llama: Model) -> None:
    driver = Driver(compile_model("torch", llama, with_options(max_batch_tokens=8)))
    with pytest.raises(AssertionError):
        driver.step([Row(SEQUENCES[0])], [9])


def test_inconsistent_inputs_are_refused(llama: Model) -> None:
    program = compile_model("torch", llama)
    inputs = Driver(program).inputs([Row(SEQUENCES[0])], [9])
    changes: list[dict[str, np.ndarray]] = [
        {"positions": inputs.positions[::-1].copy()},
        {"row_offsets": np.array([0, 8], dtype=np.int32)},
        {"row_offsets": np.array([0, 4, 9], dtype=np.int32)},
        {"token_ids": inputs.token_ids[:5]},
    ]
    for change in changes:
        bad: ForwardInputs = replace(inputs, **change)
        with pytest.raises(AssertionError):
            program.forward(bad)


def test_unknown_dtype_is_a_config_error(llama: Model) -> None:
    with pytest.raises(ConfigError, match=r"kv_dtype must be one of .*, got 'int3'"):
        compile_model("torch", llama, with_options(kv_dtype="int3"))


def test_memory_counts_what_is_held(llama: Model) -> None:
    memory = compile_model("torch", llama).memory()
    num_weights = sum(int(np.prod(shape)) for shape in llama.graph.weights.values())
    assert memory["weights"] == 4 * num_weights
    assert memory["kv_cache"] == 2 * 3 * OPTIONS.num_blocks * OPTIONS.block_size * 2 * 16 * 4
