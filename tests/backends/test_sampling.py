"""The NumPy sampler: the noise against published vectors, edits and filters against a naive reading of their
definition, the draws against softmax.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from roseinfer.backends.sampling import (
    edit_logits,
    filter_tokens,
    gumbel_noise,
    log_softmax,
    philox4x32,
    sample,
    sample_token,
    score,
)
from roseinfer.core.batch import ALL_FORBIDDEN, NO_TOKEN, LogitEdits, SampleOutput, SamplingInputs, ScoreInputs

# Random123's kat_vectors: "philox4x32 10", counter, key, expected.
PHILOX_VECTORS = [
    (
        (0x00000000, 0x00000000, 0x00000000, 0x00000000),
        (0x00000000, 0x00000000),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def sampling_inputs(rows: list[int], **parameters: object) -> SamplingInputs:
    """One value for all rows, or a list of one per row."""

    def column(name: str, default: float, dtype: str) -> np.ndarray:
        return np.broadcast_to(np.asarray(parameters.get(name, default), dtype=dtype), len(rows)).copy()

    return SamplingInputs(
        rows=np.array(rows, dtype=np.int32),
        temperatures=column("temperature", 1.0, "f4"),
        top_ks=column("top_k", 0, "i4"),
        top_ps=column("top_p", 1.0, "f4"),
        min_ps=column("min_p", 0.0, "f4"),
        seeds=column("seed", 0, "u8"),
        choices=column("choice", 0, "i4"),
        positions=column("position", 0, "i4"),
        num_logprobs=column("num_logprobs", -1, "i4"),
    )


def sample_many(logits: np.ndarray, count: int, **parameters: object) -> np.ndarray:
    """`count` draws from one row, at consecutive positions."""
    inputs = sampling_inputs([0] * count, position=np.arange(count), **parameters)
    return sample(logits[None], inputs).token_ids


def token_of(logits: list[float] | np.ndarray, **parameters: object) -> int:
    return int(sample(np.array([logits], dtype=np.float32), sampling_inputs([0], **parameters)).token_ids[0])


@dataclass
class RowEdit:
    """What one row wants, all of it optional; `allowed` of None is no mask, `num_words` of None as many as needed."""

    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    history: Sequence[int] = ()
    output_start: int = 0
    bias: Mapping[int, float] = field(default_factory=dict)
    allowed: Sequence[int] | None = None
    num_words: int | None = None


def logit_edits(edits: Mapping[int, RowEdit], vocab_size: int) -> LogitEdits:
    """Of the sampled rows that are the keys."""
    rows = sorted(edits)
    ordered = [edits[row] for row in rows]
    masked = [index for index, edit in enumerate(ordered) if edit.allowed is not None]
    num_words = min([-(-vocab_size // 32), *(edit.num_words for edit in ordered if edit.num_words is not None)])
    masks = np.zeros((len(masked), num_words), dtype=np.uint32)
    for mask, index in zip(masks, masked, strict=True):
        for token_id in ordered[index].allowed or ():
            if token_id < 32 * num_words:
                mask[token_id // 32] |= np.uint32(1 << token_id % 32)
    return LogitEdits(
        rows=np.array(rows, dtype=np.int32),
        repetitions=np.array([edit.repetition for edit in ordered], dtype=np.float32),
        presences=np.array([edit.presence for edit in ordered], dtype=np.float32),
        frequencies=np.array([edit.frequency for edit in ordered], dtype=np.float32),
        history=np.array([token_id for edit in ordered for token_id in edit.history], dtype=np.int32),
        history_offsets=np.cumsum([0, *(len(edit.history) for edit in ordered)], dtype=np.int32),
        output_starts=np.array([edit.output_start for edit in ordered], dtype=np.int32),
        bias_ids=np.array([token_id for edit in ordered for token_id in edit.bias], dtype=np.int32),
        bias_values=np.array([value for edit in ordered for value in edit.bias.values()], dtype=np.float32),
        bias_offsets=np.cumsum([0, *(len(edit.bias) for edit in ordered)], dtype=np.int32),
        masks=masks,
        mask_rows=np.array([masked.index(i) if i in masked else -1 for i in range(len(rows))], dtype=np.int32),
    )


def score_inputs(rows: Sequence[int], token_ids: Sequence[int], num_logprobs: int | Sequence[int] = 0) -> ScoreInputs:
    counts = np.broadcast_to(np.asarray(num_logprobs, dtype=np.int32), len(rows)).copy()
    return ScoreInputs(np.array(rows, dtype=np.int32), np.array(token_ids, dtype=np.int32), counts)


# -- noise --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("counter", "key", "expected"), PHILOX_VECTORS)
def test_philox_known_answers(counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]) -> None:
    assert tuple(philox4x32(np.array([counter], dtype=np.uint32), key)[0].tolist()) == expected


def test_noise_of_a_token_depends_on_nothing_but_its_own_counter() -> None:
    ids = np.array([0, 1, 5, 1023, 262_143])
    seed, choice, position = 0x123456789ABCDEF0 >> 1, 3, 77
    together = gumbel_noise(ids, seed, choice, position)
    for token_id, noise in zip(ids.tolist(), together.tolist(), strict=True):
        counter = np.array([[token_id >> 2, choice, position, 0]], dtype=np.uint32)
        word = int(philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))[0, token_id & 3])
        assert noise == pytest.approx(-math.log(-math.log1p(-(word + 0.5) / 2**32)), rel=1e-14)


def test_noise_differs_by_seed_choice_and_position() -> None:
    ids = np.arange(64)
    variants = [
        gumbel_noise(ids, *arguments) for arguments in [(0, 0, 0), (1, 0, 0), (1 << 32, 0, 0), (0, 1, 0), (0, 0, 1)]
    ]
    assert all(len(set(column)) == len(variants) for column in np.stack(variants).T.tolist())


# -- draws --------------------------------------------------------------------------------------------------------


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """In standard deviations above its mean, over the tokens that are expected at least five times."""
    expected = probabilities * counts.sum()
    common = expected >= 5
    assert counts[probabilities == 0].sum() == 0
    statistic = ((counts - expected)[common] ** 2 / expected[common]).sum()
    freedom = common.sum() - 1
    return float((statistic - freedom) / math.sqrt(2 * freedom))


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.8])
def test_draws_follow_softmax(temperature: float) -> None:
    logits = np.random.default_rng(1).normal(0, 2, 50).astype(np.float32)
    counts = np.bincount(sample_many(logits, 4_000, temperature=temperature, seed=11), minlength=50)
    assert chi_square(counts, np.exp(log_softmax(logits / np.float32(temperature)))) < 4


def test_draws_follow_softmax_over_seeds_too() -> None:
    logits = np.random.default_rng(2).normal(0, 1, 8).astype(np.float32)
    inputs = sampling_inputs([0] * 3000, seed=np.arange(3000) * 0x1E3779B97F4A7)
    counts = np.bincount(sample(logits[None], inputs).token_ids, minlength=8)
    assert chi_square(counts, np.exp(log_softmax(logits))) < 4


def test_draws_follow_what_the_filters_leave() -> None:
    logits = np.random.default_rng(3).normal(0, 2, 50).astype(np.float32)
    counts = np.bincount(sample_many(logits, 4_000, top_k=20, top_p=0.9, min_p=0.02), minlength=50)
    kept = filter_tokens(logits, 20, 0.9, 0.02)
    probabilities = np.zeros(50)
    probabilities[kept] = np.exp(logits[kept].astype(np.float64))
    assert 1 < len(kept) < 20
    assert chi_square(counts, probabilities / probabilities.sum()) < 4


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    logits = np.random.default_rng(4).normal(0, 1, (5, 100)).astype(np.float32)
    parameters = {"seed": [5, 6, 7, 8, 9], "position": [1, 2, 3, 4, 5], "temperature": [0, 1, 0.5, 2, 1]}
    together = sample(logits, sampling_inputs([0, 1, 2, 3, 4], **parameters)).token_ids
    for i in range(5):
        alone = sampling_inputs([i], **{name: values[i] for name, values in parameters.items()})
        assert sample(logits, alone).token_ids[0] == together[i]


# -- filters ------------------------------------------------------------------------------------------------------


def naive_filter(x: np.ndarray, top_k: int, top_p: float, min_p: float) -> list[int]:
    ranked = sorted(range(len(x)), key=lambda i: (-float(x[i]), i))
    if top_k:
        ranked = ranked[:top_k]
    weights = [math.exp(float(x[i]) - float(x[ranked[0]])) for i in ranked]
    kept, before = [], 0.0
    for token_id, weight in zip(ranked, weights, strict=True):
        if top_p >= 1 or before < top_p * sum(weights):
            kept.append((token_id, weight))
        before += weight
    return [token_id for token_id, weight in kept if weight >= min_p]


# Eighths, so that ties are common and sums are exact.
ROWS = arrays(np.float32, st.integers(1, 40), elements=st.integers(-40, 40).map(lambda i: i / 8))
MASKED_ROWS = st.tuples(ROWS, st.sets(st.integers(0, 39))).map(lambda t: mask_some(*t))


def mask_some(row: np.ndarray, masked: set[int]) -> np.ndarray:
    """At least one logit stays."""
    row = row.copy()
    row[[i for i in masked if 0 < i < len(row)]] = -np.inf
    return row


@settings(max_examples=100, deadline=None)
@given(MASKED_ROWS, st.integers(0, 45), st.sampled_from([0.01, 0.3, 0.5, 0.9, 0.999, 1.0]), st.floats(0, 1))
def test_filters_equal_the_naive_reading(x: np.ndarray, top_k: int, top_p: float, min_p: float) -> None:
    assert filter_tokens(x, top_k, top_p, min_p).tolist() == naive_filter(x, top_k, top_p, min_p)


@settings(max_examples=100, deadline=None)
@given(MASKED_ROWS, st.integers(0, 2**63 - 1), st.integers(0, 45), st.floats(0.01, 1), st.floats(0, 1))
def test_a_sampled_token_is_never_a_filtered_or_masked_one(
    logits: np.ndarray, seed: int, top_k: int, top_p: float, min_p: float
) -> None:
    temperature = np.float32(0.8)
    token_id = sample_token(
        logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed, choice=1, position=9
    )
    assert token_id in naive_filter(logits / temperature, top_k, top_p, min_p)
    assert np.isfinite(logits[token_id])


@given(ROWS)
def test_top_k_of_one_is_greedy(logits: np.ndarray) -> None:
    assert token_of(logits, top_k=1, seed=3) == token_of(logits, temperature=0.0) == int(np.argmax(logits))


# -- edits --------------------------------------------------------------------------------------------------------


def naive_edit(logits: np.ndarray, edit: RowEdit) -> list[np.float32]:
    """Token by token, in float32."""
    repetition, presence, frequency = map(np.float32, (edit.repetition, edit.presence, edit.frequency))
    output = list(edit.history)[edit.output_start :]
    last = 32 * (len(logits) if edit.num_words is None else edit.num_words)
    edited = []
    for token_id, logit in enumerate(logits):
        if token_id in edit.history:
            logit = logit / repetition if logit > 0 else logit * repetition
        if token_id in output:
            logit = logit - presence
            logit = logit - frequency * np.float32(output.count(token_id))
        if token_id in edit.bias:
            logit = logit + np.float32(edit.bias[token_id])
        if edit.allowed is not None and (token_id not in edit.allowed or token_id >= last):
            logit = np.float32(-np.inf)
        edited.append(logit)
    return edited


@st.composite
def row_edits(draw: st.DrawFn, vocab_size: int) -> RowEdit:
    """Every kind there or not, so that all combinations come."""
    ids = st.integers(0, vocab_size - 1)
    penalties = st.floats(-2, 2, width=32)
    biases = st.floats(-100, 100, width=32) | st.just(-math.inf)
    history = draw(st.lists(ids, max_size=12))
    return RowEdit(
        repetition=draw(st.just(1.0) | st.floats(np.float32(0.01), 10, width=32)),
        presence=draw(st.just(0.0) | penalties),
        frequency=draw(st.just(0.0) | penalties),
        history=history,
        output_start=draw(st.integers(0, len(history) + 1)),
        bias=draw(st.dictionaries(ids, biases, max_size=6)),
        allowed=draw(st.none() | st.lists(ids, max_size=vocab_size)),
        num_words=draw(st.none() | st.integers(1, -(-vocab_size // 32))),
    )


WIDE_ROWS = arrays(np.float32, st.integers(1, 80), elements=st.floats(-30, 30, width=32) | st.just(-np.inf))
EDITED_ROWS = WIDE_ROWS.flatmap(lambda row: st.tuples(st.just(row), row_edits(len(row))))


@settings(max_examples=150, deadline=None)
@given(EDITED_ROWS)
def test_edits_equal_the_naive_reading(row_and_edit: tuple[np.ndarray, RowEdit]) -> None:
    logits, edit = row_and_edit
    before = logits.copy()
    edited = edit_logits(logits, logit_edits({0: edit}, len(logits)), 0)
    assert edited.dtype == np.float32
    assert edited.tobytes() == np.array(naive_edit(logits, edit), dtype=np.float32).tobytes()
    np.testing.assert_array_equal(logits, before, "the raw row, whose logprobs are still to come, stays")


def edited(logits: list[float], **fields: object) -> list[float]:
    edits = logit_edits({0: RowEdit(**fields)}, len(logits))
    return edit_logits(np.array(logits, dtype=np.float32), edits, 0).tolist()


def test_repetition_counts_a_token_once_and_pushes_it_down_on_both_sides_of_zero() -> None:
    history = [0, 0, 0, 1, 2, 1]
    assert edited([4.0, -4.0, 0.0, 1.0], repetition=2.0, history=history, output_start=3) == [2.0, -8.0, 0.0, 1.0]


def test_presence_and_frequency_look_at_the_output_alone() -> None:
    history = [0, 1, 1, 1, 2, 2]
    assert edited([8.0, 8.0, 8.0, 8.0], presence=0.5, history=history, output_start=2) == [8.0, 7.5, 7.5, 8.0]
    assert edited([8.0, 8.0, 8.0, 8.0], frequency=0.5, history=history, output_start=2) == [8.0, 7.0, 7.0, 8.0]
    assert edited([8.0, 8.0, 8.0, 8.0], frequency=0.5, presence=1.0, history=history, output_start=6) == [8.0] * 4


def test_edits_come_in_their_order() -> None:
    everything = {"repetition": 2.0, "presence": 1.0, "frequency": 0.5, "history": [0, 0], "bias": {0: 3.0, 1: 3.0}}
    assert edited([4.0, 4.0, 4.0], **everything, allowed=[0, 2]) == [4 / 2 - 1 - 0.5 * 2 + 3, -np.inf, 4.0]


def test_tokens_beyond_the_mask_are_forbidden() -> None:
    logits = [float(i) for i in range(70)]
    assert np.flatnonzero(np.isfinite(edited(logits, allowed=range(70)))).tolist() == list(range(70))
    assert np.flatnonzero(np.isfinite(edited(logits, allowed=range(70), num_words=1))).tolist() == list(range(32))


def test_edits_that_change_nothing_leave_every_bit() -> None:
    logits = np.random.default_rng(8).normal(0, 5, 100).astype(np.float32)
    logits[7] = -np.inf
    edits = logit_edits({0: RowEdit(history=range(100), bias={5: 0.0}, allowed=range(100))}, 100)
    assert edit_logits(logits, edits, 0).tobytes() == logits.tobytes()


EDITS = {
    "penalties": RowEdit(repetition=1.3, presence=0.7, frequency=0.2, history=[1, 2, 2, 1], output_start=1),
    "bias": RowEdit(bias={0: 50.0, 3: -math.inf}),
    "mask": RowEdit(allowed=[2, 3]),
}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_choices_follow_the_edits_and_logprobs_the_raw_logits(edit: RowEdit, temperature: float) -> None:
    logits = np.random.default_rng(9).normal(0, 2, (2, 6)).astype(np.float32)
    logits[1] = logits[0]
    inputs = sampling_inputs([0, 1], temperature=temperature, num_logprobs=3, seed=5)
    output = sample(logits, replace(inputs, edits=logit_edits({1: edit}, 6)))
    plain = sample(logits, inputs)
    changed = edit_logits(logits[0], logit_edits({0: edit}, 6), 0)
    assert output.token_ids[1] == sample(changed[None], sampling_inputs([0], temperature=temperature, seed=5)).token_ids
    assert output.token_ids[0] == plain.token_ids[0], "the row beside it is as it was"
    assert output.logprobs[1] == np.float32(log_softmax(logits[0])[output.token_ids[1]])
    for i in range(2):
        assert output.top_ids[i].tolist() == plain.top_ids[i].tolist()
        assert output.top_logprobs[i].tolist() == plain.top_logprobs[i].tolist()


DEAD_ENDS = {  # and what stands for the token
    "nothing allowed": (RowEdit(allowed=[]), ALL_FORBIDDEN),
    "all biased away": (RowEdit(bias=dict.fromkeys(range(3), -math.inf)), ALL_FORBIDDEN),
    "the allowed one biased away": (RowEdit(allowed=[1], bias={1: -math.inf}), ALL_FORBIDDEN),
    "an overflow": (RowEdit(repetition=1e-38, history=[1]), NO_TOKEN),
}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("edit", "token_id"), DEAD_ENDS.values(), ids=DEAD_ENDS)
def test_a_dead_end_has_no_token(edit: RowEdit, token_id: int, temperature: float) -> None:
    logits = np.array([[1.0, 9.0, 2.0], [1.0, 9.0, 2.0]], dtype=np.float32)
    inputs = sampling_inputs([0, 1], temperature=temperature, top_k=1, num_logprobs=2)
    output = sample(logits, replace(inputs, edits=logit_edits({0: edit}, 3)))
    assert output.token_ids.tolist() == [token_id, 1]
    assert np.isnan(output.logprobs).tolist() == [True, False]
    assert [len(ids) for ids in output.top_ids] == [0, 2]


def test_a_mask_does_not_make_a_row_sound() -> None:
    for broken in (np.nan, np.inf):
        inputs = replace(sampling_inputs([0]), edits=logit_edits({0: RowEdit(allowed=[1])}, 2))
        assert sample(np.array([[broken, 1.0]], dtype=np.float32), inputs).token_ids.tolist() == [-1]


# -- scores -------------------------------------------------------------------------------------------------------


def test_a_scored_token_has_the_logprobs_of_a_sampled_one() -> None:
    logits = np.random.default_rng(10).normal(0, 3, (4, 30)).astype(np.float32)
    sampled = sample(logits, sampling_inputs([0, 1, 3], seed=[1, 2, 3], num_logprobs=[0, 2, 5]))
    scored = score(logits, score_inputs([0, 1, 3], sampled.token_ids.tolist(), [0, 2, 5]))
    np.testing.assert_array_equal(scored.token_ids, sampled.token_ids)
    np.testing.assert_array_equal(scored.logprobs, sampled.logprobs)
    for i in range(3):
        np.testing.assert_array_equal(scored.top_ids[i], sampled.top_ids[i])
        np.testing.assert_array_equal(scored.top_logprobs[i], sampled.top_logprobs[i])


def test_scores_of_any_token_and_of_unsound_rows() -> None:
    logits = np.array([[0.0, 0.0, -np.inf], [np.nan, 0.0, 0.0]], dtype=np.float32)
    output = score(logits, score_inputs([0, 0, 1], [1, 2, 1], 2))
    assert output.token_ids.tolist() == [1, 2, -1]
    assert output.logprobs[0] == pytest.approx(-math.log(2), abs=1e-6)
    assert output.logprobs[1] == -np.inf
    assert np.isnan(output.logprobs[2])
    assert [ids.tolist() for ids in output.top_ids] == [[0, 1], [0, 1], []]


# -- edges --------------------------------------------------------------------------------------------------------


def test_greedy_takes_the_lowest_id_of_a_tie() -> None:
    assert token_of([0.0, 2.0, 2.0, 1.0], temperature=0.0) == 1
    assert token_of([-np.inf, -np.inf, -5.0], temperature=0.0) == 2


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "logits", [[0.0, np.nan, 1.0], [np.inf, 0.0, 1.0], [-np.inf, -np.inf, -np.inf], [np.nan, np.inf, -np.inf]]
)
def test_an_unusable_row_has_no_token(logits: list[float], temperature: float) -> None:
    inputs = sampling_inputs([0, 1], temperature=temperature, num_logprobs=2)
    output = sample(np.array([logits, [0.0, 9.0, 0.0]], dtype=np.float32), inputs)
    assert output.token_ids[0] == -1
    assert np.isnan(output.logprobs[0])
    assert output.top_ids[0].tolist() == []
    assert output.top_ids[1].tolist() == [1, 0], "the row beside it is not touched"


@pytest.mark.parametrize("temperature", [1e-45, 1e-38, 1e-10])
def test_a_temperature_that_overflows_is_greedy(temperature: float) -> None:
    for logits in ([1.0, 3.0, 2.0], [-3.0, -1.0, -2.0], [0.0, 30.0, -30.0]):
        assert token_of(logits, temperature=temperature, seed=5) == 1


# -- logprobs -----------------------------------------------------------------------------------------------------


def logprobs_of(logits: np.ndarray, **parameters: object) -> SampleOutput:
    return sample(logits.astype(np.float32)[None], sampling_inputs([0], **parameters))


def test_logprobs_are_those_of_the_raw_logits() -> None:
    logits = np.random.default_rng(6).normal(0, 3, 30)
    reference = logits.astype(np.float32).astype(np.float64)
    reference -= np.log(np.exp(reference).sum())
    output = logprobs_of(logits, temperature=0.3, top_k=3, num_logprobs=5, seed=2)
    order = np.argsort(-reference)
    assert output.logprobs[0] == pytest.approx(reference[output.token_ids[0]], abs=1e-6)
    assert output.top_ids[0].tolist() == order[:5].tolist()
    np.testing.assert_allclose(output.top_logprobs[0], reference[order[:5]], atol=1e-6)


def test_how_many_logprobs() -> None:
    logits = np.array([1.0, 3.0, 3.0, -np.inf])
    none, own, all_four = (logprobs_of(logits, num_logprobs=n, temperature=0.0) for n in (-1, 0, 20))
    assert np.isnan(none.logprobs[0])
    assert own.logprobs[0] == pytest.approx(-math.log(2 + math.exp(-2)), abs=1e-6)
    assert own.top_ids[0].tolist() == []
    assert all_four.top_ids[0].tolist() == [1, 2, 0, 3], "the lower id first on a tie, masked tokens last"
    assert all_four.top_logprobs[0][3] == -np.inf
    assert (all_four.top_ids[0].dtype, all_four.top_logprobs[0].dtype) == (np.int32, np.float32)
