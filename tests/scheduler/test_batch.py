from __future__ import annotations

import numpy as np
import pytest

from roseinfer.core.request import Request
from roseinfer.scheduler.batch import Batch, BatchRow, SamplingTable
from tests.fake_engine import make_request

VOCAB_SIZE = 50


def make(prompt_ids: list[int], num_computed: int, blocks: list[int], **fields: object) -> Request:
    request = Request(make_request("r", prompt_ids, **fields))
    request.num_computed_tokens = num_computed
    request.block_table.extend(blocks)
    return request


def test_a_batch_becomes_flat_arrays() -> None:
    decode = make([5, 6, 7, 8, 9], 4, [3, 1])
    chunk = make([20, 21, 22, 23, 24, 25, 26], 2, [2], seed=2**63 - 1, temperature=0.5, num_logprobs=3, choice=2)
    prompt = make([1, 2, 3], 0, [0], top_k=4, top_p=0.25, min_p=0.125)
    batch = Batch([BatchRow(decode, 1), BatchRow(chunk, 2), BatchRow(prompt, 3)])
    inputs = batch.forward_inputs()
    assert inputs.token_ids.tolist() == [9, 22, 23, 1, 2, 3]
    assert inputs.positions.tolist() == [4, 2, 3, 0, 1, 2]
    assert inputs.row_offsets.tolist() == [0, 1, 3, 6]
    assert inputs.block_tables.tolist() == [[3, 1], [2, -1], [0, -1]]
    assert inputs.logit_rows.tolist() == [0, 5]
    assert {getattr(inputs, name).dtype for name in inputs.__dataclass_fields__} == {np.dtype(np.int32)}


def test_sampling_inputs_are_those_of_the_rows_that_caught_up() -> None:
    greedy = make([5, 6], 1, [0])
    chunk = make([1, 2, 3], 0, [1])
    sampled = make(
        [1, 2, 3], 0, [2], seed=2**63 - 1, temperature=0.5, top_k=4, top_p=1e-60, min_p=0.125, num_logprobs=3, choice=2
    )
    batch = Batch([BatchRow(greedy, 1), BatchRow(chunk, 2), BatchRow(sampled, 3)])
    assert batch.sampled_requests == [greedy, sampled]
    inputs = SamplingTable(VOCAB_SIZE).inputs(batch.sampled_requests)
    assert inputs.rows.tolist() == [0, 1]
    assert inputs.temperatures.tolist() == [0.0, 0.5]
    assert inputs.top_ks.tolist() == [0, 4]
    assert inputs.top_ps[0] == 1.0
    assert 0 < inputs.top_ps[1] < 1e-30  # too small for float32, but never 0
    assert inputs.min_ps.tolist() == [0.0, 0.125]
    assert inputs.seeds.tolist() == [0, 2**63 - 1]
    assert inputs.choices.tolist() == [0, 2]
    assert inputs.positions.tolist() == [2, 3]
    assert inputs.num_logprobs.tolist() == [-1, 3]


def test_a_step_without_samples_has_no_logit_rows() -> None:
    inputs = Batch([BatchRow(make([1, 2, 3], 0, [0]), 2)]).forward_inputs()
    assert (inputs.logit_rows.tolist(), inputs.logit_rows.dtype) == ([], np.int32)


def test_what_was_made_for_a_step_does_not_change_with_the_requests() -> None:
    request = make([5, 6], 1, [0])
    inputs = Batch([BatchRow(request, 1)]).forward_inputs()
    request.token_ids.append(7)
    request.block_table.append(3)
    assert (inputs.token_ids.tolist(), inputs.block_tables.tolist()) == ([6], [[0]])


def test_kept_sampling_parameters_follow_the_requests() -> None:
    a, b = make([5, 6], 1, [0], seed=1, top_k=3), make([7], 0, [1], seed=2, temperature=0.5)
    table = SamplingTable(VOCAB_SIZE)
    for requests in [[a], [a], [a, b], [b, a], [b], []]:
        inputs = table.inputs(requests)
        assert inputs.rows.tolist() == list(range(len(requests)))
        assert inputs.seeds.tolist() == [request.params.seed for request in requests]
        assert inputs.top_ks.tolist() == [request.params.top_k for request in requests]
        assert inputs.temperatures.tolist() == [request.params.temperature for request in requests]
        assert inputs.positions.tolist() == [request.num_tokens for request in requests]
        a.token_ids.append(9)


# -- prompts that are scored --------------------------------------------------------------------------------


def test_scored_prompts_have_rows_of_logits_of_their_own() -> None:
    scored = make([1, 2, 3, 4, 5], 0, [0], num_prompt_logprobs=2)
    again = make([11, 12, 13, 14, 15, 16], 0, [1, 2], num_prompt_logprobs=0)
    again.num_unscored_tokens = 2  # after a preemption
    plain = make([21, 22], 0, [3])
    batch = Batch([BatchRow(scored, 5), BatchRow(plain, 2), BatchRow(again, 4)])
    assert batch.forward_inputs().logit_rows.tolist() == [0, 1, 2, 3, 4, 6, 10]
    assert batch.sampled_requests == [scored, plain]
    rows, scores = batch.sample_rows(), batch.score_inputs()
    assert rows is not None
    assert scores is not None
    assert SamplingTable(VOCAB_SIZE).inputs(batch.sampled_requests, rows).rows.tolist() == [4, 5]
    assert scores.rows.tolist() == [0, 1, 2, 3, 6]
    assert scores.token_ids.tolist() == [2, 3, 4, 5, 15]
    assert scores.num_logprobs.tolist() == [2, 2, 2, 2, 0]


def test_without_a_scored_prompt_every_row_of_logits_is_sampled() -> None:
    batch = Batch([BatchRow(make([1, 2, 3], 0, [0]), 3)])
    assert (batch.sample_rows(), batch.score_inputs()) == (None, None)


def test_a_prompt_whose_logprobs_are_known_is_scored_no_more() -> None:
    request = make([1, 2, 3, 4], 0, [0], num_prompt_logprobs=0)
    request.num_unscored_tokens = 0
    row = BatchRow(request, 4)
    assert (row.num_scores, row.is_sampled) == (0, True)


@pytest.mark.parametrize("num_logits", range(9))
@pytest.mark.parametrize("num_unscored", range(6))
@pytest.mark.parametrize("num_outputs", [0, 3])
def test_chunks_are_cut_to_the_rows_of_logits(num_logits: int, num_unscored: int, num_outputs: int) -> None:
    request = make(list(range(6)), 0, [0], num_prompt_logprobs=0, output_ids=[9] * num_outputs)
    request.num_unscored_tokens = num_unscored
    fitting = [n for n in range(request.num_tokens + 1) if request.num_logits_of(n) <= num_logits]
    assert request.num_tokens_within(num_logits) == max(fitting)
