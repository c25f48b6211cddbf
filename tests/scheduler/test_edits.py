from __future__ import annotations

from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roseinfer.core.batch import LogitEdits, UInt32Array
from roseinfer.core.request import Request
from roseinfer.scheduler.batch import SamplingTable
from roseinfer.scheduler.edits import fill_masks
from tests.fake_engine import make_request
from tests.fake_grammars import FakeConstraint, hashed_grammar

VOCAB_SIZE = 50


def make(prompt_ids: list[int], **fields: object) -> Request:
    return Request(make_request("r", prompt_ids, **fields))


def edits_of(*requests: Request) -> LogitEdits | None:
    return SamplingTable(VOCAB_SIZE).inputs(list(requests)).edits


def some_edits_of(*requests: Request) -> LogitEdits:
    edits = edits_of(*requests)
    assert edits is not None
    return edits


def biases(edits: LogitEdits) -> list[dict[int, float]]:
    pairs = list(zip(edits.bias_ids.tolist(), edits.bias_values.tolist(), strict=True))
    spans = zip(edits.bias_offsets.tolist(), edits.bias_offsets.tolist()[1:], strict=False)
    rows = [pairs[start:stop] for start, stop in spans]
    assert all(len(dict(row)) == len(row) for row in rows), "a token twice"
    return [dict(row) for row in rows]


def tokens_of(mask: UInt32Array) -> list[int]:
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()


def test_without_wishes_there_are_no_edits() -> None:
    assert edits_of(make([1, 2]), make([3], stop_token_ids=[4], temperature=1.0, num_logprobs=3)) is None
    assert edits_of() is None


def test_only_rows_that_want_edits_are_named() -> None:
    plain, biased, masked = make([1]), make([1], logit_bias={3: 1.5}), make([1], allowed_token_ids=[0, 31, 32, 49])
    edits = some_edits_of(plain, biased, plain, masked)
    assert edits.rows.tolist() == [1, 3]
    assert biases(edits) == [{3: 1.5}, {}]
    assert edits.mask_rows.tolist() == [-1, 0]
    assert edits.masks.shape == (1, 2)
    assert tokens_of(edits.masks[0]) == [0, 31, 32, 49]


@pytest.mark.parametrize(
    "penalty", [{"repetition_penalty": 1.5}, {"presence_penalty": -0.5}, {"frequency_penalty": 0.25}]
)
def test_the_history_goes_to_rows_with_penalties(penalty: dict[str, float]) -> None:
    penalised = make([5, 6, 5], output_ids=[7, 7], **penalty)
    biased = make([1, 2], logit_bias={3: 1.0})
    edits = some_edits_of(biased, penalised)
    assert edits.history.tolist() == [5, 6, 5, 7, 7]
    assert edits.history_offsets.tolist() == [0, 0, 5]
    assert edits.output_starts.tolist() == [0, 3]
    assert edits.repetitions.tolist() == [1.0, penalty.get("repetition_penalty", 1.0)]
    assert edits.presences.tolist() == [0.0, penalty.get("presence_penalty", 0.0)]
    assert edits.frequencies.tolist() == [0.0, penalty.get("frequency_penalty", 0.0)]


def test_the_history_grows_with_the_request_and_edits_that_were_made_stay() -> None:
    request, table = make([5], presence_penalty=1.0), SamplingTable(VOCAB_SIZE)
    before = table.inputs([request]).edits
    request.token_ids.append(8)
    after = table.inputs([request]).edits
    assert before is not None
    assert after is not None
    assert (before.history.tolist(), after.history.tolist()) == ([5], [5, 8])


def test_stop_tokens_are_forbidden_until_there_are_enough() -> None:
    request = make([1, 2], min_tokens=2, stop_token_ids=[4, 9], logit_bias={4: 3.0, 5: 1.0})
    assert biases(some_edits_of(request)) == [{4: -inf, 9: -inf, 5: 1.0}]
    request.token_ids.append(7)
    assert biases(some_edits_of(request)) == [{4: -inf, 9: -inf, 5: 1.0}]
    request.token_ids.append(7)
    assert biases(some_edits_of(request)) == [{4: 3.0, 5: 1.0}]


def test_after_the_first_tokens_min_tokens_cost_nothing() -> None:
    request = make([1], min_tokens=1, stop_token_ids=[4])
    assert edits_of(request) is not None
    request.token_ids.append(7)
    assert edits_of(request) is None


def test_a_bad_word_is_forbidden_where_it_would_end() -> None:
    words = [[9], [1, 2, 3], [2, 4], [7, 8], [2, 5]]
    request = make([1], bad_words_ids=words, logit_bias={4: 1.0})
    assert biases(some_edits_of(request)) == [{4: 1.0, 9: -inf}]
    request.token_ids.append(2)  # prompt and output together are looked at
    assert biases(some_edits_of(request)) == [{3: -inf, 4: -inf, 5: -inf, 9: -inf}]
    request.token_ids.append(3)
    assert biases(some_edits_of(request)) == [{4: 1.0, 9: -inf}]
    assert biases(some_edits_of(make([2, 3], bad_words_ids=[[1, 2, 3, 4], [9]]))) == [{9: -inf}]


IDS = st.integers(0, 3)


@given(
    prompt_ids=st.lists(IDS, min_size=1, max_size=6),
    output_ids=st.lists(IDS, max_size=6),
    words=st.lists(st.lists(IDS, min_size=1, max_size=4), max_size=5),
    min_tokens=st.integers(0, 6),
    stop_token_ids=st.lists(IDS, max_size=2),
    logit_bias=st.dictionaries(IDS, st.floats(-100, 100, width=32), max_size=4),
)
def test_biases_are_what_was_asked_for(
    prompt_ids: list[int],
    output_ids: list[int],
    words: list[list[int]],
    min_tokens: int,
    stop_token_ids: list[int],
    logit_bias: dict[int, float],
) -> None:
    request = make(
        prompt_ids,
        output_ids=output_ids,
        bad_words_ids=words,
        min_tokens=min_tokens,
        stop_token_ids=stop_token_ids,
        logit_bias=logit_bias,
    )
    known = prompt_ids + output_ids
    forbidden = {word[-1] for word in words if known[len(known) - len(word) + 1 :] == word[:-1]}
    forbidden |= set(stop_token_ids) if len(output_ids) < min_tokens else set()
    expected = {**logit_bias, **dict.fromkeys(forbidden, -inf)}
    edits = edits_of(request)
    assert (biases(edits) if edits else [{}]) == [expected]


# -- constraints --------------------------------------------------------------------------------------------


def constrained(prompt_ids: list[int], accepted: list[int] | None = None, **fields: object) -> Request:
    request = make(prompt_ids, grammar=hashed_grammar(9, fails_in="mask", fails_at=2), **fields)
    assert request.params.grammar is not None
    constraint = FakeConstraint(request.params.grammar, VOCAB_SIZE)
    constraint.accepted = accepted or []
    request.constraint = constraint
    return request


def test_a_constraint_writes_its_mask_and_allowed_ids_bound_it() -> None:
    plain, free, bounded = make([1]), constrained([1]), constrained([1], allowed_token_ids=list(range(25)))
    requests = [free, plain, bounded]
    edits = some_edits_of(*requests)
    assert edits.mask_rows.tolist() == [0, 1]
    assert free.constraint is not None
    allowed = np.flatnonzero(free.constraint.allowed()).tolist()  # type: ignore[attr-defined]
    for _ in range(2):  # may be done again
        assert fill_masks(requests, edits) == {}
        assert tokens_of(edits.masks[0]) == allowed
        assert tokens_of(edits.masks[1]) == [token_id for token_id in allowed if token_id < 25]
    assert 0 < len(tokens_of(edits.masks[1])) < len(allowed) < VOCAB_SIZE


def test_a_constraint_that_fails_is_named_and_the_others_are_filled() -> None:
    failing, sound = constrained([1], accepted=[3, 4]), constrained([1])
    edits = some_edits_of(failing, make([1]), sound)
    filled: list[None] = []
    failures = fill_masks([failing, make([1]), sound], edits, lambda: filled.append(None))
    assert len(filled) == 2  # the one that failed has got on as well
    assert [(request, str(error)) for request, error in failures.items()] == [(failing, "mask failed")]
    assert 0 < len(tokens_of(edits.masks[1])) < VOCAB_SIZE
