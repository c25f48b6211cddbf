"""The C++ sampler against the NumPy one, id for id, over logits that a program copies from a table unchanged."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roseinfer.backends.native import NativeProgram, _native
from roseinfer.backends.sampling import filter_tokens, log_softmax, philox4x32, sample
from roseinfer.core.batch import ForwardInputs, SampleOutput, SamplingInputs
from tests.backends.test_sampling import PHILOX_VECTORS, sampling_inputs

ISAS = _native.available_isas()
KV_BLOCK = _native.KV_BLOCK
MAX_LOGPROB_ERROR = 1e-4

# Every filter alone, and all of them; the values are no round fractions, so that no threshold is met exactly.
MIXES: dict[str, dict[str, float]] = {
    "greedy": {"temperature": 0.0},
    "plain": {},
    "cold": {"temperature": 0.31},
    "hot": {"temperature": 1.93},
    "top_k": {"top_k": 7},
    "top_k above the vocabulary": {"top_k": 60_001},
    "top_p": {"top_p": 0.8713},
    "small top_p": {"top_p": 0.0137},
    "min_p": {"min_p": 0.0519},
    "top_k and top_p": {"top_k": 23, "top_p": 0.7391},
    "all": {"temperature": 0.83, "top_k": 41, "top_p": 0.9277, "min_p": 0.0123},
}


def table_program(table: np.ndarray, isa: str = "auto", num_threads: int = 1) -> NativeProgram:
    """A program whose logits at position i are row i of the table, bit for bit."""
    rows, width = table.shape
    pool = _native.ThreadPool(num_threads)
    logits = _native.Buffer(0, width)
    program = _native.Program(
        isa=isa,
        pool=pool,
        max_tokens=rows,
        max_logits=rows,
        num_blocks=1,
        block_bytes=64,
        kv_dtype="float32",
        arena_bytes=table.nbytes,
        vocab_size=width,
        max_positions=rows,
        logits=logits,
    )
    data = np.ascontiguousarray(table, dtype=np.float32).reshape(-1).view(np.uint8)
    program.add_embedding(_native.pack("f32", rows, width, data, pool), logits, 1.0, True)
    native = NativeProgram(program, width, 0, isa)
    native.forward(whole_table(rows))
    return native


def whole_table(rows: int) -> ForwardInputs:
    return ForwardInputs(
        token_ids=np.zeros(rows, dtype=np.int32),
        positions=np.arange(rows, dtype=np.int32),
        row_offsets=np.array([0, rows], dtype=np.int32),
        block_tables=np.zeros((1, rows // KV_BLOCK + 1), dtype=np.int32),
        logit_rows=np.arange(rows, dtype=np.int32),
    )


def check(table: np.ndarray, inputs: SamplingInputs, isa: str = "auto", num_threads: int = 1) -> SampleOutput:
    """Both samplers agree on the table's rows; the native one's answer."""
    table = np.ascontiguousarray(table, dtype=np.float32)
    output = table_program(table, isa, num_threads).sample(inputs)
    expected = sample(table, inputs)
    np.testing.assert_array_equal(output.token_ids, expected.token_ids)
    np.testing.assert_allclose(output.logprobs, expected.logprobs, rtol=0, atol=MAX_LOGPROB_ERROR)
    assert len(output.top_ids) == len(output.top_logprobs) == len(inputs.rows)
    for i in range(len(inputs.rows)):
        np.testing.assert_array_equal(output.top_ids[i], expected.top_ids[i])
        np.testing.assert_allclose(output.top_logprobs[i], expected.top_logprobs[i], rtol=0, atol=MAX_LOGPROB_ERROR)
    return output


def random_logits(rows: int, vocab_size: int, seed: int, spread: float = 2.5) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, spread, (rows, vocab_size)).astype(np.float32)


def each_row(count: int, **parameters: Any) -> SamplingInputs:
    """Every row once, with a seed, a choice and a position of its own."""
    rng = np.random.default_rng(count)
    drawn = {
        "seed": rng.integers(0, 2**63, count, dtype=np.uint64),
        "choice": rng.integers(0, 16, count),
        "position": rng.integers(0, 200_000, count),
        "num_logprobs": rng.integers(-1, 8, count),
    }
    return sampling_inputs(list(range(count)), **{**drawn, **parameters})


# -- noise --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("counter", "key", "expected"), PHILOX_VECTORS)
def test_philox_known_answers(counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]) -> None:
    words = _native.philox(np.array(counter, dtype=np.uint32), np.array(key, dtype=np.uint32))
    assert tuple(words.tolist()) == expected


WORDS = st.integers(0, 2**32 - 1)


@given(st.tuples(WORDS, WORDS, WORDS, WORDS), st.tuples(WORDS, WORDS))
def test_philox_is_the_references(counter: tuple[int, ...], key: tuple[int, int]) -> None:
    words = _native.philox(np.array(counter, dtype=np.uint32), np.array(key, dtype=np.uint32))
    np.testing.assert_array_equal(words, philox4x32(np.array([counter], dtype=np.uint32), key)[0])


# -- ids and logprobs ---------------------------------------------------------------------------------------------


def test_the_tables_rows_are_the_logits() -> None:
    table = random_logits(40, 33, seed=0)
    table[3, 4], table[5, 6], table[7, 8] = np.nan, np.inf, -np.inf
    np.testing.assert_array_equal(table_program(table).logits(), table)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
@pytest.mark.parametrize("vocab_size", [1, 2, 15, 16, 17, 320, 5000])
def test_ids_equal_the_references(vocab_size: int, mix: dict[str, float], isa: str) -> None:
    count = 60 if vocab_size < 5000 else 15
    output = check(random_logits(count, vocab_size, seed=vocab_size), each_row(count, **mix), isa)
    assert (output.token_ids >= 0).all()


@pytest.mark.parametrize("isa", ISAS)
def test_a_real_vocabulary(isa: str) -> None:
    """50 k tokens, every mix on a row of its own, two threads."""
    mixes = list(MIXES.values())
    columns = {name: [mix.get(name, default) for mix in mixes] for name, default in DEFAULTS.items()}
    table = random_logits(len(mixes), 50_257, seed=3, spread=3.0)
    check(table, each_row(len(mixes), num_logprobs=20, **columns), isa, num_threads=2)


DEFAULTS: dict[str, float] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def test_filters_leave_different_tokens() -> None:
    """The mixes above are worth something only if they change who may win."""
    row = random_logits(1, 320, seed=320)[0]
    kept = {
        name: tuple(filter_tokens(row, int(m.get("top_k", 0)), m.get("top_p", 1.0), m.get("min_p", 0.0)).tolist())
        for name, m in MIXES.items()
        if name not in ("greedy", "cold", "hot", "top_k above the vocabulary")
    }
    assert len(set(kept.values())) == len(kept)


@settings(max_examples=150, deadline=None)
@given(
    vocab_size=st.integers(1, 400),
    seed=st.integers(0, 2**32),
    temperature=st.sampled_from([0.0, 0.5, 0.97, 2.0]),
    top_k=st.sampled_from([0, 1, 2, 5, 50, 400]),
    top_p=st.sampled_from([0.0713, 0.5171, 0.9413, 0.99931, 1.0]),
    min_p=st.sampled_from([0.0, 0.0317, 0.4711, 1.0]),
)
def test_any_parameters(vocab_size: int, seed: int, temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    filters = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    inputs = each_row(4, seed=np.arange(4, dtype=np.uint64) + seed, **filters)
    check(random_logits(4, vocab_size, seed), inputs)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_ties_go_to_the_lower_id(mix: dict[str, float], isa: str) -> None:
    """Five levels only, so that the filters cut through equal logits."""
    levels = np.array([-2.7, -0.6, 0.3, 1.1, 2.2], dtype=np.float32)
    table = levels[np.random.default_rng(5).integers(0, 5, (40, 100))]
    check(table, each_row(40, **mix), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_masked_tokens_are_never_chosen(mix: dict[str, float], isa: str) -> None:
    table = random_logits(40, 70, seed=6)
    masked = np.random.default_rng(7).random(table.shape) < 0.7
    masked[:, 11] = False
    table[masked] = -np.inf
    output = check(table, each_row(40, **mix, num_logprobs=3), isa)
    assert np.isfinite(table[np.arange(40), output.token_ids]).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
@pytest.mark.parametrize("column", [0, 15, 16, 46])
def test_unsound_rows_have_no_token(column: int, mix: dict[str, float], isa: str) -> None:
    """A NaN, a +inf, or nothing but -inf: -1, and the sound rows beside it are served."""
    table = random_logits(6, 47, seed=8)
    table[1, column], table[3, column], table[4] = np.nan, np.inf, -np.inf
    output = check(table, each_row(6, **mix, num_logprobs=2), isa)
    assert (output.token_ids < 0).tolist() == [False, True, False, True, True, False]
    assert [len(ids) for ids in output.top_ids] == [2, 0, 2, 0, 0, 2]


def test_a_temperature_that_overflows_is_greedy() -> None:
    table = np.array([[1.0, 3e38, 3.1e38, 3e38], [-3.1e38, -3e38, -3e38, -3.2e38]], dtype=np.float32)
    for mix in ({}, {"top_k": 2}, {"top_p": 0.5171}, {"min_p": 0.0317}):
        output = check(table, each_row(2, temperature=1e-3, num_logprobs=-1, **mix))
        assert output.token_ids.tolist() == [2, 1]


def test_logits_far_apart_keep_their_logprobs() -> None:
    table = np.array([[0.0, -80.0, -200.0, -1e30], [500.0, 499.0, 0.0, -500.0]], dtype=np.float32)
    check(table, each_row(2, num_logprobs=4))


def test_no_logprobs_unless_asked_for() -> None:
    output = check(random_logits(3, 20, seed=9), each_row(3, num_logprobs=[-1, 0, 5]))
    assert np.isnan(output.logprobs).tolist() == [True, False, False]
    assert [len(ids) for ids in output.top_ids] == [0, 0, 5]


def test_more_logprobs_than_tokens() -> None:
    output = check(random_logits(1, 4, seed=10), each_row(1, num_logprobs=20))
    assert sorted(output.top_ids[0].tolist()) == [0, 1, 2, 3]
    assert np.exp(output.top_logprobs[0]).sum() == pytest.approx(1.0, abs=1e-5)


# -- rows ---------------------------------------------------------------------------------------------------------


def test_only_the_rows_named_are_sampled() -> None:
    table = random_logits(9, 50, seed=11)
    output = check(table, sampling_inputs([0, 3, 8], temperature=0.0, num_logprobs=0))
    assert output.token_ids.tolist() == table[[0, 3, 8]].argmax(-1).tolist()
    expected = [log_softmax(table[row]).max() for row in (0, 3, 8)]
    np.testing.assert_allclose(output.logprobs, expected, atol=MAX_LOGPROB_ERROR)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_row_does_not_depend_on_its_neighbours(num_threads: int, isa: str) -> None:
    """Ids and logprobs to the bit: alone on one thread, and among 31 others."""
    table = random_logits(32, 700, seed=12)
    inputs = each_row(32, temperature=0.9, top_k=list(range(32)), top_p=0.9413, num_logprobs=5)
    together = table_program(table, isa, num_threads).sample(inputs)
    program = table_program(table, isa)
    for i in range(32):
        alone = program.sample(only(inputs, i))
        assert alone.token_ids[0] == together.token_ids[i]
        assert alone.logprobs[0] == together.logprobs[i]
        np.testing.assert_array_equal(alone.top_ids[0], together.top_ids[i])
        np.testing.assert_array_equal(alone.top_logprobs[0], together.top_logprobs[i])


def only(inputs: SamplingInputs, index: int) -> SamplingInputs:
    names = SamplingInputs.__dataclass_fields__
    return replace(inputs, **{name: getattr(inputs, name)[index : index + 1] for name in names})


def test_rows_without_logits_and_uneven_arrays_are_refused() -> None:
    program = table_program(random_logits(2, 20, seed=13))
    for rows in ([2], [-1], [0, 5]):
        with pytest.raises(ValueError, match="no logits"):
            program.sample(sampling_inputs(rows))
    uneven = replace(sampling_inputs([0, 1]), top_ks=np.zeros(1, dtype=np.int32))
    with pytest.raises(ValueError, match="differ in length"):
        program.sample(uneven)
    assert len(program.sample(sampling_inputs([0, 1])).token_ids) == 2
    assert len(program.sample(sampling_inputs([])).token_ids) == 0
