"""The sampler's kernels against the NumPy sampler, id for id.

Both add float64 noise to the same float32 scores, and their logarithms and exponentials may differ in the last bit. A
test could notice only where two tokens' scores, or a sum and its threshold, lie closer together than that: once in
10^13 or so, unless they are equal by construction. Equal weights have exact sums here and there, and equal scores have
noise of their own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from roseinfer.backends.cuda.device import open_device
from roseinfer.backends.cuda.kernels.launch import recording
from roseinfer.backends.cuda.sampler import PendingSamples, Sampler
from roseinfer.backends.cuda.stages import WorkRows
from roseinfer.backends.sampling import edit_logits, sample, score
from roseinfer.core.batch import SampleOutput, SamplingInputs, ScoreInputs
from tests.backends.native.test_native_sampling import DEFAULTS, MIXES, assert_same_bits, each_row, only, random_logits
from tests.backends.test_sampling import DEAD_ENDS, RowEdit, logit_edits, row_edits, sampling_inputs, score_inputs

DEVICE = open_device()
ALL_MIXES = {name: [mix.get(name, default) for mix in MIXES.values()] for name, default in DEFAULTS.items()}


def on_device(table: np.ndarray) -> torch.Tensor:
    return torch.tensor(table, dtype=torch.float32, device=DEVICE)


def make_sampler(table: np.ndarray) -> Sampler:
    return Sampler(table.shape[1], DEVICE, max_rows=8)


def check(table: np.ndarray, inputs: SamplingInputs, sampler: Sampler | None = None) -> SampleOutput:
    """Both samplers agree; the device's answer."""
    output = (sampler or make_sampler(table)).sample(on_device(table), inputs).collect()
    check_output(output, sample(table.astype(np.float32), inputs))
    return output


def check_output(output: SampleOutput, expected: SampleOutput) -> None:
    np.testing.assert_array_equal(output.token_ids, expected.token_ids)
    np.testing.assert_allclose(output.logprobs, expected.logprobs, rtol=1e-6, atol=1e-6)
    assert (output.token_ids.dtype, output.logprobs.dtype) == (np.int32, np.float32)
    for i in range(len(expected.token_ids)):
        np.testing.assert_array_equal(output.top_ids[i], expected.top_ids[i])
        np.testing.assert_allclose(output.top_logprobs[i], expected.top_logprobs[i], rtol=1e-6, atol=1e-6)
        assert (output.top_ids[i].dtype, output.top_logprobs[i].dtype) == (np.int32, np.float32)


def every_mix(**parameters: Any) -> SamplingInputs:
    """A row for each, by a seed of its own."""
    return each_row(len(MIXES), **{**ALL_MIXES, **parameters})


# -- choices ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocab_size", [1, 320, 2100])
def test_ids_equal_the_references(vocab_size: int) -> None:
    output = check(random_logits(len(MIXES), vocab_size, seed=vocab_size), every_mix())
    assert (output.token_ids >= 0).all()


def test_ties_go_to_the_lower_id() -> None:
    """Five levels, both zeros among them, so that the filters cut through equal logits."""
    levels = np.array([-2.7, -0.6, -0.0, 0.0, 1.1], dtype=np.float32)
    table = levels[np.random.default_rng(3).integers(0, 5, (len(MIXES), 1030))]
    check(table, every_mix())


def test_equal_logits() -> None:
    """All weights are 1, so their sums are exact and top_p's threshold is met exactly."""
    table = np.full((5, 600), 0.75)
    check(table, each_row(5, top_p=[0.5, 0.25, 0.75, 1 / 64, 1.0], top_k=[0, 0, 100, 0, 7], num_logprobs=3))


@st.composite
def parameters(draw: st.DrawFn, count: int) -> dict[str, list[float]]:
    """A value of each for `count` rows; no threshold is a round fraction of anything."""
    values = {
        "temperature": st.sampled_from([0.0, 0.5, 0.97, 2.0]),
        "top_k": st.sampled_from([0, 1, 2, 5, 50, 700]),
        "top_p": st.sampled_from([0.0713, 0.5171, 0.9413, 0.99931, 1.0]),
        "min_p": st.sampled_from([0.0, 0.0317, 0.4711, 1.0]),
        "num_logprobs": st.integers(-1, 9),
        "seed": st.integers(0, 2**64 - 1),
        "choice": st.integers(0, 2**31 - 1),
        "position": st.integers(0, 2**31 - 1),
    }
    return {name: draw(st.lists(value, min_size=count, max_size=count)) for name, value in values.items()}


@st.composite
def tables(draw: st.DrawFn, num_rows: int, max_vocab: int) -> np.ndarray:
    """Eighths of few different values, some forbidden; now and then a row that is unsound."""
    vocab_size = draw(st.integers(1, max_vocab))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    table = np.round(rng.normal(0, draw(st.sampled_from([0.2, 1.0, 5.0])), (num_rows, vocab_size)) * 8) / 8
    table[rng.random(table.shape) < draw(st.sampled_from([0.0, 0.1, 0.9]))] = -np.inf
    broken = draw(st.none() | st.sampled_from([np.nan, np.inf]))
    if broken is not None:
        table[0, draw(st.integers(0, vocab_size - 1))] = broken
    return table.astype(np.float32)


@settings(max_examples=15, deadline=None)
@given(tables(2, 1100), parameters(2))
def test_any_parameters(table: np.ndarray, values: dict[str, list[float]]) -> None:
    check(table, sampling_inputs([0, 1], **values))


@pytest.mark.parametrize("position", [0, 2**31, 2**40 + 5])
def test_positions_of_more_than_32_bits(position: int) -> None:
    table = random_logits(2, 40, seed=1)
    check(table, replace(sampling_inputs([0, 1], seed=7), positions=np.array([position, position + 1])))


def test_a_temperature_that_overflows_is_greedy() -> None:
    table = np.array([[1.0, 3e38, 3.1e38, 3e38], [-3.1e38, -3e38, -3e38, -3.2e38], [0.0, -3e38, -1.0, -2.0]])
    with np.errstate(over="ignore"):
        output = check(table, each_row(3, temperature=1e-3, top_p=0.9137))
    assert output.token_ids.tolist() == [2, 1, 0]


@pytest.mark.parametrize("column", [0, 1025])
def test_unsound_rows_have_no_token(column: int) -> None:
    """A NaN, a +inf, or nothing but -inf: -1, and the sound rows beside it are served."""
    table = random_logits(6, 1030, seed=8)
    table[1, column], table[3, column], table[4] = np.nan, np.inf, -np.inf
    output = check(table, each_row(6, num_logprobs=2))
    assert (output.token_ids < 0).tolist() == [False, True, False, True, True, False]
    assert [len(ids) for ids in output.top_ids] == [2, 0, 2, 0, 0, 2]


# -- edits ------------------------------------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(tables(2, 150), parameters(2), st.data())
def test_any_edits(table: np.ndarray, values: dict[str, list[float]], data: st.DataObject) -> None:
    vocab_size = table.shape[1]
    drawn = {row: data.draw(st.none() | row_edits(vocab_size)) for row in range(2)}
    edits = logit_edits({row: edit for row, edit in drawn.items() if edit is not None}, vocab_size)
    check(table, replace(sampling_inputs([0, 1], **values), edits=edits))


def test_edits_of_many_tokens() -> None:
    """Histories, biases and masks that several programs share, and tokens that are there many times."""
    vocab_size, rng = 3000, np.random.default_rng(14)
    history = (rng.zipf(1.3, 2500) % vocab_size).tolist()
    penalties = RowEdit(repetition=1.17, presence=0.3, frequency=0.01, history=history, output_start=1100)
    bias = RowEdit(bias=dict(zip(rng.permutation(vocab_size)[:1500].tolist(), rng.normal(0, 5, 1500), strict=True)))
    mask = RowEdit(allowed=rng.permutation(vocab_size)[:900].tolist())
    everything = replace(penalties, bias=bias.bias, allowed=mask.allowed)
    edits = logit_edits({0: penalties, 2: bias, 3: mask, 4: everything}, vocab_size)
    mixes = [{}, {}, {"top_k": 50}, {}, {"top_p": 0.9137}]
    columns = {name: [mix.get(name, default) for mix in mixes] for name, default in DEFAULTS.items()}
    sampled = replace(each_row(5, num_logprobs=2, **columns), edits=edits)
    table = random_logits(9, vocab_size, seed=15)
    check(table, replace(sampled, rows=np.array([0, 2, 5, 6, 8], dtype=np.int32)))


def test_an_edited_logit_has_the_references_bits() -> None:
    """Token 0 is edited, and wins against what it should become, but not against the next larger number."""
    rng = np.random.default_rng(16)
    raw = rng.normal(0, 5, 8).astype(np.float32)
    edits = [
        RowEdit(
            repetition=float(rng.uniform(0.5, 2)),
            presence=float(rng.normal()),
            frequency=float(rng.normal()),
            history=[0] * int(rng.integers(0, 9)),
            output_start=int(rng.integers(0, 5)),
            bias={0: float(rng.normal())},
        )
        for _ in raw
    ]
    wanted = [edit_logits(raw[i : i + 1], logit_edits({0: edit}, 1), 0)[0] for i, edit in enumerate(edits)]
    rivals = np.repeat(np.array(wanted, dtype=np.float32), 2)
    rivals[1::2] = np.nextafter(rivals[1::2], np.float32(np.inf))
    table = np.stack([np.repeat(raw, 2), rivals], axis=1)
    inputs = sampling_inputs(list(range(16)), temperature=0.0)
    output = check(table, replace(inputs, edits=logit_edits({i: edits[i // 2] for i in range(16)}, 2)))
    assert output.token_ids.tolist() == [0, 1] * 8


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_dead_ends_have_no_token(temperature: float) -> None:
    table = np.array([[1.0, 9.0, 2.0]] * (len(DEAD_ENDS) + 1))
    inputs = each_row(len(table), temperature=temperature, num_logprobs=2)
    edits = {row + 1: edit for row, (edit, _) in enumerate(DEAD_ENDS.values())}
    with np.errstate(over="ignore", invalid="ignore"):
        output = check(table, replace(inputs, edits=logit_edits(edits, 3)))
    assert output.token_ids[1:].tolist() == [token_id for _, token_id in DEAD_ENDS.values()]
    assert output.token_ids[0] >= 0


def test_a_mask_does_not_make_a_row_sound() -> None:
    table = random_logits(3, 40, seed=16)
    table[0, 7], table[1, 7], table[2] = np.nan, np.inf, -np.inf
    edits = dict.fromkeys(range(3), RowEdit(allowed=[3], bias={3: 1.0}))
    output = check(table, replace(each_row(3, num_logprobs=1), edits=logit_edits(edits, 40)))
    assert output.token_ids.tolist() == [-1, -1, -1]


def test_one_history_leaves_nothing_for_the_next() -> None:
    table = random_logits(1, 60, seed=17, spread=0.5)
    sampler, rng = make_sampler(table), np.random.default_rng(18)
    for step in range(12):
        history = rng.integers(0, 60, 2 * step).tolist()
        edit = RowEdit(presence=1.5, frequency=0.5, repetition=1.9, history=history, output_start=step)
        inputs = sampling_inputs([0], temperature=0.0, position=step)
        check(table, replace(inputs, edits=logit_edits({0: edit}, 60)), sampler)


# -- logprobs and scores ----------------------------------------------------------------------------------------------


def test_more_logprobs_than_tokens() -> None:
    output = check(random_logits(3, 600, seed=10), each_row(3, temperature=0.0, num_logprobs=[1000, 600, 599]))
    assert sorted(output.top_ids[0].tolist()) == list(range(600))
    assert [len(ids) for ids in output.top_ids] == [600, 600, 599]


def test_logits_far_apart_keep_their_logprobs() -> None:
    table = np.array([[0.0, -80.0, -200.0, -1e30], [500.0, 499.0, 0.0, -500.0]])
    check(table, each_row(2, num_logprobs=4))


def test_no_logprobs_unless_asked_for() -> None:
    output = check(random_logits(3, 20, seed=9), each_row(3, num_logprobs=[-1, 0, 5]))
    assert np.isnan(output.logprobs).tolist() == [True, False, False]
    assert [len(ids) for ids in output.top_ids] == [0, 0, 5]


def test_scores_equal_the_references() -> None:
    table = random_logits(12, 600, seed=22)
    table[3, 4], table[5, 6], table[7], table[9, 8] = np.nan, np.inf, -np.inf, -np.inf
    token_ids = np.random.default_rng(23).integers(0, 600, 12)
    token_ids[9] = 8
    inputs = score_inputs(list(range(12)), token_ids.tolist(), np.arange(12) % 5)
    output = make_sampler(table).score(on_device(table), inputs).collect()
    check_output(output, score(table, inputs))
    assert np.flatnonzero(output.token_ids < 0).tolist() == [3, 5, 7]
    assert output.logprobs[9] == -np.inf


def test_a_scored_token_equals_a_sampled_one_to_the_bit() -> None:
    table = random_logits(6, 300, seed=24)
    inputs = each_row(6, num_logprobs=list(range(6)), temperature=0.8, top_k=9)
    edits = logit_edits({row: RowEdit(allowed=range(row, 300, 3)) for row in range(0, 6, 2)}, 300)
    sampler = make_sampler(table)
    sampled = sampler.sample(on_device(table), replace(inputs, edits=edits)).collect()
    rows = list(range(6))
    scored = sampler.score(on_device(table), score_inputs(rows, sampled.token_ids.tolist(), rows)).collect()
    for row in rows:
        assert_same_bits(scored, row, sampled, row)


# -- rows -------------------------------------------------------------------------------------------------------------


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    """Ids and logprobs to the bit: alone, and among others; from memory with gaps between its rows, too."""
    table = random_logits(4, 1030, seed=12)
    every_edit = RowEdit(repetition=1.3, presence=0.4, frequency=0.2, output_start=2, bias={8: 2.5, 9: -np.inf})
    edits = {row: replace(every_edit, history=range(row, 1030, 5), allowed=range(row % 2, 1030, 2)) for row in (1, 2)}
    inputs = each_row(4, temperature=0.9, top_k=[0, 60, 5, 0], top_p=0.9413, num_logprobs=5)
    together = check(table, replace(inputs, edits=logit_edits(edits, 1030)))
    with_gaps = torch.zeros((4, 1050), device=DEVICE)[:, :1030].copy_(on_device(table))
    sampler = make_sampler(table)
    for i in range(4):
        alone = only(inputs, i)
        if i in edits:
            alone = replace(alone, edits=logit_edits({0: edits[i]}, 1030))
        assert_same_bits(sampler.sample(with_gaps, alone).collect(), 0, together, i)


def test_calls_under_way() -> None:
    """Each call's results are its own, whenever they are collected; the device's ids last until the call after the
    next.
    """
    table = random_logits(5, 90, seed=30)
    sampler, logits = make_sampler(table), on_device(table)
    calls = [sampling_inputs([0, 3, 4][: i % 3 + 1], temperature=1.0, position=i, num_logprobs=i - 1) for i in range(5)]
    scores = [score_inputs([i], [i + 7], i) for i in range(5)]
    pending: list[tuple[PendingSamples, PendingSamples]] = []
    for inputs, known in zip(calls, scores, strict=True):
        pending.append((sampler.sample(logits, inputs), sampler.score(logits, known)))
        for (samples, _), earlier in list(zip(pending, calls, strict=False))[-2:]:
            assert samples.token_ids_device.tolist() == sample(table, earlier).token_ids.tolist()
    for (samples, scored), inputs, known in zip(pending, calls, scores, strict=True):
        check_output(samples.collect(), sample(table, inputs))
        check_output(scored.collect(), score(table, known))
        assert samples.collect().token_ids.tolist() == sample(table, inputs).token_ids.tolist()


def test_warming_up_launches_every_kernel_and_leaves_nothing_behind() -> None:
    table = random_logits(2, 40, seed=27)
    sampler, launched = make_sampler(table), []
    with recording(launched.append):
        sampler.warm_up()
    kernels = {launch.kernel.__name__ for launch in launched}
    assert kernels == {"sample_kernel", "logprobs_kernel", "count_kernel", "edit_kernel", "bias_kernel"}
    sampler.warm_up()
    check(table, sampling_inputs([0, 1], num_logprobs=1), sampler)


def test_no_rows() -> None:
    table = random_logits(2, 20, seed=13)
    sampler = make_sampler(table)
    for edits in (None, logit_edits({}, 20)):
        assert len(check(table, replace(sampling_inputs([]), edits=edits), sampler).token_ids) == 0
    assert len(check(table, replace(sampling_inputs([0, 1]), edits=logit_edits({}, 20)), sampler).token_ids) == 2
    assert len(sampler.score(on_device(table), score_inputs([], [])).collect().token_ids) == 0


def test_work_memory_is_made_once_and_no_larger_than_allowed() -> None:
    work = WorkRows(10, torch.int32, DEVICE, max_rows=5)
    first = work.take(1)
    assert work.take(2).data_ptr() == first.data_ptr()
    most = work.take(4)
    assert most.untyped_storage().nbytes() == 5 * 10 * 4
    assert work.take(5).data_ptr() == most.data_ptr()


def i32(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


BAD_EDITS: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "a row too many": ({"rows": i32(0, 1, 2)}, "differ in length"),
    "a row that is not sampled": ({"rows": i32(0, 3)}, "not sampled"),
    "a negative row": ({"rows": i32(-1, 2)}, "not sampled"),
    "a row twice": ({"rows": i32(2, 2)}, "not ascending"),
    "a history beyond the vocabulary": ({"history": i32(1, 20, 1)}, "history is outside"),
    "a history below it": ({"history": i32(1, 1, -1)}, "history is outside"),
    "no history offsets": ({"history_offsets": i32()}, "do not cover the history"),
    "history offsets to 2": ({"history_offsets": i32(0, 1, 2)}, "do not cover the history"),
    "history offsets that descend": ({"history_offsets": i32(0, 4, 3)}, "do not cover the history"),
    "a negative output start": ({"output_starts": i32(0, -1)}, "output starts before"),
    "a biased token beyond the vocabulary": ({"bias_ids": i32(20, 1)}, "biased token is outside"),
    "a bias too many": ({"bias_values": np.ones(3, dtype=np.float32)}, "differ in length"),
    "bias offsets to 1": ({"bias_offsets": i32(0, 1, 1)}, "do not cover the biases"),
    "a mask that is not there": ({"mask_rows": i32(1, -1)}, "outside the masks"),
}


@pytest.mark.parametrize(("fields", "message"), BAD_EDITS.values(), ids=BAD_EDITS)
def test_bad_edits_are_refused(fields: dict[str, np.ndarray], message: str) -> None:
    table = random_logits(3, 20, seed=21)
    edits = {0: RowEdit(history=[1, 2, 1], output_start=1, bias={0: 1.0}, allowed=[4]), 2: RowEdit(bias={1: -1.0})}
    inputs = replace(sampling_inputs([0, 1, 2]), edits=replace(logit_edits(edits, 20), **fields))
    with pytest.raises(ValueError, match=message):
        make_sampler(table).sample(on_device(table), inputs)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (score_inputs([2], [0]), "no logits"),
        (score_inputs([0], [20]), "outside the vocabulary"),
        (score_inputs([0], [-1]), "outside the vocabulary"),
        (score_inputs([0], [0], -1), "negative"),
        (score_inputs([0, 1], [0], [0, 0]), "differ in length"),
    ],
)
def test_bad_scores_are_refused(inputs: ScoreInputs, message: str) -> None:
    table = random_logits(2, 20, seed=25)
    with pytest.raises(ValueError, match=message):
        make_sampler(table).score(on_device(table), inputs)


@pytest.mark.parametrize("rows", [[2], [-1], [0, 5]])
def test_rows_without_logits_are_refused(rows: list[int]) -> None:
    table = random_logits(2, 20, seed=26)
    with pytest.raises(ValueError, match="no logits"):
        make_sampler(table).sample(on_device(table), sampling_inputs(rows))
