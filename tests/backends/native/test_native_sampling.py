"""The C++ sampler against the NumPy one, id for id, over logits that a program copies from a table unchanged."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roseinfer.backends.native import NativeProgram, _native
from roseinfer.backends.sampling import edit_logits, filter_tokens, log_softmax, philox4x32, sample, score
from roseinfer.core.batch import ForwardInputs, LogitEdits, SampleOutput, SamplingInputs, ScoreInputs
from tests.backends.test_sampling import (
    DEAD_ENDS,
    PHILOX_VECTORS,
    RowEdit,
    logit_edits,
    row_edits,
    sampling_inputs,
    score_inputs,
)

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
    check_output(output, sample(table, inputs))
    return output


def check_output(output: SampleOutput, expected: SampleOutput) -> None:
    np.testing.assert_array_equal(output.token_ids, expected.token_ids)
    np.testing.assert_allclose(output.logprobs, expected.logprobs, rtol=0, atol=MAX_LOGPROB_ERROR)
    assert len(output.top_ids) == len(output.top_logprobs) == len(expected.token_ids)
    for i in range(len(expected.token_ids)):
        np.testing.assert_array_equal(output.top_ids[i], expected.top_ids[i])
        np.testing.assert_allclose(output.top_logprobs[i], expected.top_logprobs[i], rtol=0, atol=MAX_LOGPROB_ERROR)


def assert_same_bits(output: SampleOutput, index: int, other: SampleOutput, other_index: int) -> None:
    """Of one row of each."""
    assert output.token_ids[index] == other.token_ids[other_index]
    np.testing.assert_array_equal(output.logprobs[index], other.logprobs[other_index])
    np.testing.assert_array_equal(output.top_ids[index], other.top_ids[other_index])
    np.testing.assert_array_equal(output.top_logprobs[index], other.top_logprobs[other_index])


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


# -- edits --------------------------------------------------------------------------------------------------------

FILTERS = st.sampled_from(list(MIXES.values()))


@st.composite
def edited_tables(draw: st.DrawFn) -> tuple[np.ndarray, dict[int, RowEdit]]:
    """Five rows of which some are edited; eighths, so that penalties bring ties and turn places round."""
    vocab_size = draw(st.integers(1, 150))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    table = (np.round(rng.normal(0, 1, (5, vocab_size)) * 8) / 8).astype(np.float32)
    table[rng.random(table.shape) < 0.1] = -np.inf
    edits = st.none() | row_edits(vocab_size)
    return table, {row: edit for row in range(5) if (edit := draw(edits)) is not None}


def with_edits(inputs: SamplingInputs, edits: Mapping[int, RowEdit], vocab_size: int) -> SamplingInputs:
    return replace(inputs, edits=logit_edits(edits, vocab_size))


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=60, deadline=None)
@given(edited_tables(), FILTERS, st.integers(0, 2**32))
def test_any_edits(
    isa: str, table_and_edits: tuple[np.ndarray, dict[int, RowEdit]], mix: dict[str, float], seed: int
) -> None:
    table, edits = table_and_edits
    inputs = each_row(5, seed=np.arange(5, dtype=np.uint64) + seed, **mix)
    check(table, with_edits(inputs, edits, table.shape[1]), isa)


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.data())
def test_an_edited_logit_has_the_references_bits(isa: str, seed: int, data: st.DataObject) -> None:
    """Token 0 is edited and wins against a token of the logit it should have by its lower id, but not against the next
    larger one.
    """
    edits = data.draw(st.lists(row_edits(1), min_size=4, max_size=4))
    raw = np.random.default_rng(seed).normal(0, 5, 4).astype(np.float32)
    edits = [replace(edit, allowed=None, bias={t: b for t, b in edit.bias.items() if b > -math.inf}) for edit in edits]
    wanted = [edit_logits(raw[i : i + 1], logit_edits({0: edit}, 1), 0)[0] for i, edit in enumerate(edits)]
    rivals = np.repeat(np.array(wanted, dtype=np.float32), 2)
    rivals[1::2] = np.nextafter(rivals[1::2], np.float32(np.inf))
    table = np.stack([np.repeat(raw, 2), rivals], axis=1)
    inputs = with_edits(sampling_inputs(list(range(8)), temperature=0.0), {i: edits[i // 2] for i in range(8)}, 2)
    assert table_program(table, isa).sample(inputs).token_ids.tolist() == [0, 1] * 4


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("vocab_size", [1, 15, 16, 17, 31, 32, 33, 64, 1000])
def test_masks_of_every_width(vocab_size: int, isa: str) -> None:
    """Each word of the mask, whole and in part, and masks that end before the vocabulary does."""
    rng = np.random.default_rng(vocab_size)
    table = random_logits(12, vocab_size, seed=vocab_size)
    for num_words in range(1, min(-(-vocab_size // 32), 3) + 1):
        edits = {
            row: RowEdit(allowed=np.flatnonzero(rng.random(vocab_size) < row / 10).tolist(), num_words=num_words)
            for row in range(12)
        }
        for mix in (MIXES["greedy"], MIXES["plain"], MIXES["all"]):
            output = check(table, with_edits(each_row(12, **mix), edits, vocab_size), isa)
            for row, token_id in enumerate(output.token_ids.tolist()):
                assert token_id in (edits[row].allowed or []) or token_id < 0


@pytest.mark.parametrize("isa", ISAS)
def test_edits_of_a_real_vocabulary(isa: str) -> None:
    """50 k tokens, a long history, two threads."""
    vocab_size, mixes = 50_257, [MIXES["greedy"], MIXES["plain"], MIXES["all"]]
    columns = {name: [mix.get(name, default) for mix in mixes] * 3 for name, default in DEFAULTS.items()}
    rng = np.random.default_rng(14)
    history = (rng.zipf(1.3, 3000) % vocab_size).tolist()
    penalties = RowEdit(repetition=1.17, presence=0.3, frequency=0.01, history=history, output_start=1000)
    bias = RowEdit(bias=dict(zip(rng.permutation(vocab_size)[:300].tolist(), rng.normal(0, 5, 300), strict=True)))
    mask = RowEdit(allowed=rng.permutation(vocab_size)[:2000].tolist())
    everything = replace(penalties, bias=bias.bias, allowed=mask.allowed)
    edits = dict(enumerate([penalties] * 3 + [mask] * 3 + [everything] * 3))
    inputs = each_row(9, num_logprobs=20, **columns)
    check(random_logits(9, vocab_size, seed=15), with_edits(inputs, edits, vocab_size), isa, num_threads=2)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("mix", [MIXES["greedy"], MIXES["plain"], MIXES["all"]])
@pytest.mark.parametrize(("edit", "token_id"), DEAD_ENDS.values(), ids=DEAD_ENDS)
def test_dead_ends_have_no_token(edit: RowEdit, token_id: int, mix: dict[str, float], isa: str) -> None:
    table = np.array([[1.0, 9.0, 2.0]] * 3, dtype=np.float32)
    output = check(table, with_edits(each_row(3, **mix, num_logprobs=2), {1: edit}, 3), isa)
    assert output.token_ids[1] == token_id
    assert (output.token_ids < 0).tolist() == [False, True, False]
    assert np.isnan(output.logprobs).tolist() == [False, True, False]
    assert [len(ids) for ids in output.top_ids] == [2, 0, 2]


@pytest.mark.parametrize("isa", ISAS)
def test_a_mask_does_not_make_a_row_sound(isa: str) -> None:
    table = random_logits(3, 40, seed=16)
    table[0, 7], table[1, 7], table[2] = np.nan, np.inf, -np.inf
    edits = dict.fromkeys(range(3), RowEdit(allowed=[3], bias={3: 1.0}))
    output = check(table, with_edits(each_row(3, num_logprobs=1), edits, 40), isa)
    assert output.token_ids.tolist() == [-1, -1, -1]


@pytest.mark.parametrize("isa", ISAS)
def test_one_history_leaves_nothing_for_the_next(isa: str) -> None:
    """On one program, one thread, one step after the other."""
    table = random_logits(1, 60, seed=17, spread=0.5)
    program = table_program(table, isa)
    rng = np.random.default_rng(18)
    for step in range(30):
        history = rng.integers(0, 60, step).tolist()
        edit = RowEdit(presence=1.5, frequency=0.5, repetition=1.9, history=history, output_start=step // 2)
        for inputs in (sampling_inputs([0], position=step), sampling_inputs([0], temperature=0.0)):
            inputs = with_edits(inputs, {0: edit}, 60)
            check_output(program.sample(inputs), sample(table, inputs))


def test_no_rows_to_edit() -> None:
    table = random_logits(3, 40, seed=19)
    edited = check(table, with_edits(each_row(3, num_logprobs=0), {}, 40))
    np.testing.assert_array_equal(edited.token_ids, check(table, each_row(3, num_logprobs=0)).token_ids)
    assert len(table_program(table).sample(with_edits(sampling_inputs([]), {}, 40)).token_ids) == 0


def test_arrays_that_cannot_be_written_to() -> None:
    table = random_logits(2, 40, seed=20)
    inputs = with_edits(each_row(2), {0: RowEdit(history=[3], presence=1.0, bias={2: 1.0}, allowed=[2, 3, 4])}, 40)
    for name in LogitEdits.__dataclass_fields__:
        getattr(inputs.edits, name).setflags(write=False)
    check(table, inputs)


def i32(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def f32(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


BAD_EDITS: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "a row too many": ({"rows": i32(0, 1, 2)}, "differ in length"),
    "a repetition too few": ({"repetitions": f32(1)}, "differ in length"),
    "a presence too many": ({"presences": f32(0, 0, 0)}, "differ in length"),
    "a frequency too few": ({"frequencies": f32(0)}, "differ in length"),
    "an output start too few": ({"output_starts": i32(0)}, "differ in length"),
    "a mask row too many": ({"mask_rows": i32(0, -1, -1)}, "differ in length"),
    "a bias too many": ({"bias_values": f32(1, 2, 3)}, "differ in length"),
    "a row that is not sampled": ({"rows": i32(0, 3)}, "not sampled"),
    "a negative row": ({"rows": i32(-1, 2)}, "not sampled"),
    "rows that descend": ({"rows": i32(2, 0)}, "not ascending"),
    "a row twice": ({"rows": i32(2, 2)}, "not ascending"),
    "a repetition of 0": ({"repetitions": f32(1, 0)}, "finite and above 0"),
    "a negative repetition": ({"repetitions": f32(-1, 1)}, "finite and above 0"),
    "a repetition that is no number": ({"repetitions": f32(1, math.nan)}, "finite and above 0"),
    "an infinite repetition": ({"repetitions": f32(math.inf, 1)}, "finite and above 0"),
    "an infinite presence": ({"presences": f32(0, -math.inf)}, "penalty is not finite"),
    "a presence that is no number": ({"presences": f32(0, math.nan)}, "penalty is not finite"),
    "a frequency that overflows": ({"frequencies": f32(1e30, 0)}, "penalty is not finite"),
    "a history beyond the vocabulary": ({"history": i32(1, 20, 1)}, "history is outside"),
    "a history below it": ({"history": i32(1, 1, -1)}, "history is outside"),
    "a history offset too few": ({"history_offsets": i32(0, 3)}, "do not cover the history"),
    "no history offsets": ({"history_offsets": i32()}, "do not cover the history"),
    "history offsets from 1": ({"history_offsets": i32(1, 2, 3)}, "do not cover the history"),
    "history offsets to 2": ({"history_offsets": i32(0, 1, 2)}, "do not cover the history"),
    "history offsets that descend": ({"history_offsets": i32(0, 4, 3)}, "do not cover the history"),
    "negative history offsets": ({"history_offsets": i32(0, -1, 3)}, "do not cover the history"),
    "a negative output start": ({"output_starts": i32(0, -1)}, "output starts before"),
    "a bias beyond the vocabulary": ({"bias_ids": i32(20, 1)}, "biased token is outside"),
    "a bias below it": ({"bias_ids": i32(0, -1)}, "biased token is outside"),
    "a bias that is no number": ({"bias_values": f32(0, math.nan)}, "bias is neither"),
    "an infinite bias": ({"bias_values": f32(math.inf, 0)}, "bias is neither"),
    "bias offsets to 1": ({"bias_offsets": i32(0, 1, 1)}, "do not cover the biases"),
    "bias offsets that descend": ({"bias_offsets": i32(0, 3, 2)}, "do not cover the biases"),
    "a mask that is not there": ({"mask_rows": i32(1, -1)}, "outside the masks"),
    "a mask below none": ({"mask_rows": i32(-2, 0)}, "outside the masks"),
    "masks without words": ({"masks": np.zeros((1, 0), dtype=np.uint32)}, "outside the masks"),
    "masks of one dimension": ({"masks": np.zeros(1, dtype=np.uint32)}, "edits.masks has another"),
    "masks of int32": ({"masks": np.zeros((1, 1), dtype=np.int32)}, "edits.masks has another"),
    "masks that are transposed": ({"masks": np.zeros((3, 2), dtype=np.uint32).T}, "edits.masks has another"),
    "a history of int64": ({"history": np.array([1, 2, 1])}, "edits.history has another"),
    "a history with gaps": ({"history": np.arange(6, dtype=np.int32)[::2]}, "edits.history has another"),
    "biases of float64": ({"bias_values": np.zeros(2)}, "edits.bias_values has another"),
}


@pytest.mark.parametrize(("fields", "message"), BAD_EDITS.values(), ids=BAD_EDITS)
def test_bad_edits_are_refused(fields: dict[str, np.ndarray], message: str) -> None:
    program = table_program(random_logits(3, 20, seed=21))
    edits = {0: RowEdit(history=[1, 2, 1], output_start=1, bias={0: 1.0}, allowed=[4]), 2: RowEdit(bias={1: -1.0})}
    inputs = with_edits(sampling_inputs([0, 1, 2]), edits, 20)
    assert inputs.edits is not None
    with pytest.raises(ValueError, match=message):
        program.sample(replace(inputs, edits=replace(inputs.edits, **fields)))
    assert program.sample(inputs).token_ids[0] == 4


# -- scores -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("num_threads", [1, 2])
def test_scores_equal_the_references(num_threads: int, isa: str) -> None:
    table = random_logits(70, 500, seed=22)
    table[3, 4], table[5, 6], table[7], table[9, 8] = np.nan, np.inf, -np.inf, -np.inf
    rng = np.random.default_rng(23)
    token_ids = rng.integers(0, 500, 70)
    token_ids[9] = 8
    inputs = score_inputs(list(range(70)), token_ids.tolist(), rng.integers(0, 9, 70).tolist())
    output = table_program(table, isa, num_threads).score(inputs)
    check_output(output, score(table, inputs))
    assert np.flatnonzero(output.token_ids < 0).tolist() == [3, 5, 7]
    assert output.logprobs[9] == -np.inf


@pytest.mark.parametrize("isa", ISAS)
def test_a_scored_token_equals_a_sampled_one_to_the_bit(isa: str) -> None:
    """Whatever the token was chosen with, alone and among others."""
    table = random_logits(16, 300, seed=24)
    inputs = each_row(16, num_logprobs=list(range(16)), temperature=0.8, top_k=9)
    inputs = with_edits(inputs, {row: RowEdit(allowed=range(row, 300, 3)) for row in range(0, 16, 2)}, 300)
    program = table_program(table, isa, num_threads=2)
    sampled = program.sample(inputs)
    scored = program.score(score_inputs(list(range(16)), sampled.token_ids.tolist(), list(range(16))))
    for row in range(16):
        alone = program.score(score_inputs([row], [int(sampled.token_ids[row])], row))
        assert_same_bits(scored, row, sampled, row)
        assert_same_bits(alone, 0, sampled, row)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (score_inputs([2], [0]), "no logits"),
        (score_inputs([-1], [0]), "no logits"),
        (score_inputs([0], [20]), "outside the vocabulary"),
        (score_inputs([0], [-1]), "outside the vocabulary"),
        (score_inputs([0], [0], -1), "negative"),
        (score_inputs([0, 1], [0], [0, 0]), "differ in length"),
        (ScoreInputs(i32(0), i32(0), i32()), "differ in length"),
    ],
)
def test_bad_scores_are_refused(inputs: ScoreInputs, message: str) -> None:
    program = table_program(random_logits(2, 20, seed=25))
    with pytest.raises(ValueError, match=message):
        program.score(inputs)
    assert len(program.score(score_inputs([], [])).token_ids) == 0


# -- rows ---------------------------------------------------------------------------------------------------------


def test_only_the_rows_named_are_sampled() -> None:
    table = random_logits(9, 50, seed=11)
    output = check(table, sampling_inputs([0, 3, 8], temperature=0.0, num_logprobs=0))
    assert output.token_ids.tolist() == table[[0, 3, 8]].argmax(-1).tolist()
    expected = [log_softmax(table[row]).max() for row in (0, 3, 8)]
    np.testing.assert_allclose(output.logprobs, expected, atol=MAX_LOGPROB_ERROR)


EVERY_EDIT = RowEdit(
    repetition=1.3, presence=0.4, frequency=0.2, history=[5, 6, 5, 7, 5], output_start=2, bias={8: 2.5, 9: -math.inf}
)
NEIGHBOURS: dict[str, dict[int, RowEdit]] = {
    "without edits": {},
    "with edits": {
        row: replace(EVERY_EDIT, history=range(row, 700, 5), allowed=range(row % 2, 700, 2) if row % 4 else None)
        for row in range(0, 32, 3)
    },
}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("edits", NEIGHBOURS.values(), ids=NEIGHBOURS)
def test_a_row_does_not_depend_on_its_neighbours(edits: dict[int, RowEdit], num_threads: int, isa: str) -> None:
    """Ids and logprobs to the bit: alone on one thread, and among 31 others."""
    table = random_logits(32, 700, seed=12)
    inputs = each_row(32, temperature=0.9, top_k=list(range(32)), top_p=0.9413, num_logprobs=5)
    together = table_program(table, isa, num_threads).sample(with_edits(inputs, edits, 700))
    program = table_program(table, isa)
    for i in range(32):
        alone = only(inputs, i)
        output = program.sample(with_edits(alone, {0: edits[i]}, 700) if i in edits else alone)
        assert_same_bits(output, 0, together, i)


def only(inputs: SamplingInputs, index: int) -> SamplingInputs:
    """One row, without its edits."""
    names = [name for name in SamplingInputs.__dataclass_fields__ if name != "edits"]
    return replace(inputs, edits=None, **{name: getattr(inputs, name)[index : index + 1] for name in names})


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
