"""Steps of the native program over a model from anywhere: extreme tokens, every parameter of sampling, bad inputs."""

from __future__ import annotations

import random

import numpy as np

from roseinfer.backends import Program, ProgramOptions, compile_program
from roseinfer.backends.native.compiler import fastest_kv_dtype
from roseinfer.core.batch import ForwardInputs, LogitEdits, SamplingInputs, ScoreInputs
from roseinfer.core.errors import ConfigError, UnsupportedModelError
from roseinfer.models import Model

NUM_BLOCKS, BLOCK_SIZE, MAX_TOKENS = 6, 16, 40


def step_model(model: Model, rng: random.Random) -> None:
    """Weights may hold anything, so logits may be NaN; tokens are ids of the vocabulary, or below 0 for none."""
    options = ProgramOptions(
        num_blocks=NUM_BLOCKS,
        max_batch_tokens=MAX_TOKENS,
        max_logit_rows=MAX_TOKENS,
        dtype=rng.choice(["auto", "float32", "bfloat16", "float16"]),
        kv_dtype=rng.choice(["float32", "float16", "bfloat16", "q8", fastest_kv_dtype("auto")]),
        num_threads=rng.choice([1, 1, 2]),
        isa=rng.choice(["auto", "auto", *available_isas()]),
    )
    try:
        with np.errstate(all="ignore"):
            program = compile_program("native", model.graph, model.weights, options)
    except (ConfigError, UnsupportedModelError):  # values that the dtype cannot hold, heads that are too wide
        return
    max_positions = min(model.max_model_len, model.graph.max_positions or 2**31 - 1)
    _step(program, max_positions, rng)
    _step(program, max_positions, rng)
    _refused_step(program)
    program.close()


def available_isas() -> tuple[str, ...]:
    import roseinfer.backends.native._native as native

    return tuple(native.available_isas())


def _step(program: Program, max_positions: int, rng: random.Random) -> None:
    """Two rows: one from the start, one in the middle of its blocks."""
    lengths = [rng.randint(1, min(20, max_positions)) for _ in range(2)]
    starts = [0, rng.randint(0, max(0, min(max_positions, 48) - lengths[1]))]
    spans = [np.arange(start, start + length) for start, length in zip(starts, lengths, strict=True)]
    num_tokens = sum(lengths)
    last = program.vocab_size - 1
    ids = rng.choice([[0], [last], [0, last], range(program.vocab_size)])
    inputs = ForwardInputs(
        token_ids=np.array(rng.choices(list(ids), k=num_tokens), np.int32),
        positions=np.concatenate(spans).astype(np.int32),
        row_offsets=np.array([0, lengths[0], num_tokens], np.int32),
        block_tables=np.arange(NUM_BLOCKS, dtype=np.int32).reshape(2, -1),
        logit_rows=np.arange(num_tokens, dtype=np.int32),
    )
    program.forward(inputs)
    assert program.logits().shape == (num_tokens, program.vocab_size)
    sampled = program.sample(_sampling(num_tokens, program.vocab_size, rng))
    assert ((sampled.token_ids >= -2) & (sampled.token_ids <= last)).all()
    rows = np.arange(num_tokens, dtype=np.int32)
    program.score(ScoreInputs(rows, inputs.token_ids, np.full(num_tokens, min(5, last), np.int32)))


def _sampling(num_rows: int, vocab_size: int, rng: random.Random) -> SamplingInputs:
    def draw(values: list[float], dtype: type) -> np.ndarray:
        return np.array(rng.choices(values, k=num_rows), dtype)

    return SamplingInputs(
        rows=np.arange(num_rows, dtype=np.int32),
        temperatures=draw([0.0, 1e-6, 1.0, 2.0], np.float32),
        top_ks=draw([0, 1, vocab_size, 2**31 - 1], np.int32),
        top_ps=draw([1e-6, 0.5, 1.0], np.float32),
        min_ps=draw([0.0, 0.5, 1.0], np.float32),
        seeds=draw([0, 2**63], np.uint64),
        choices=draw([0, 15], np.int32),
        positions=draw([0, 2**40], np.int64),
        num_logprobs=draw([-1, 0, min(20, vocab_size)], np.int32),
        edits=_edits(num_rows, vocab_size, rng) if rng.random() < 0.5 else None,
    )


def _edits(num_rows: int, vocab_size: int, rng: random.Random) -> LogitEdits:
    """For every row the same history, penalties and bias; a mask that forbids half of the tokens or all."""
    last = vocab_size - 1
    history, bias_ids = [0, last, last], sorted({0, last})
    num_words = -(-vocab_size // 32)
    return LogitEdits(
        rows=np.arange(num_rows, dtype=np.int32),
        repetitions=np.full(num_rows, rng.choice([1.0, 2.0, 1e-3]), np.float32),
        presences=np.full(num_rows, rng.choice([0.0, 2.0]), np.float32),
        frequencies=np.full(num_rows, rng.choice([0.0, -2.0]), np.float32),
        history=np.array(history * num_rows, np.int32),
        history_offsets=np.arange(num_rows + 1, dtype=np.int32) * len(history),
        output_starts=np.full(num_rows, rng.choice([0, 1, 9]), np.int32),
        bias_ids=np.array(bias_ids * num_rows, np.int32),
        bias_values=np.full(len(bias_ids) * num_rows, rng.choice([-100.0, 100.0, -np.inf]), np.float32),
        bias_offsets=np.arange(num_rows + 1, dtype=np.int32) * len(bias_ids),
        masks=np.full((1, num_words), rng.choice([0, 0x55555555, 0xFFFFFFFF]), np.uint32),
        mask_rows=np.array(rng.choices([-1, 0], k=num_rows), np.int32),
    )


def _refused_step(program: Program) -> None:
    for token_id in (-1, program.vocab_size, 2**31 - 1):
        one = np.zeros(1, np.int32)
        inputs = ForwardInputs(np.array([token_id], np.int32), one, np.array([0, 1], np.int32), one[None], one)
        try:
            program.forward(inputs)
        except ValueError:
            continue
        raise AssertionError(f"token {token_id} is taken")
