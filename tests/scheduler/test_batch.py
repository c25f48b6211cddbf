from __future__ import annotations

import numpy as np

from roseinfer.core.request import Request
from roseinfer.scheduler.batch import Batch, BatchRow, SamplingTable
from tests.fake_engine import make_request


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
    inputs = SamplingTable().inputs(batch.sampled_requests)
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
    table = SamplingTable()
    for requests in [[a], [a], [a, b], [b, a], [b], []]:
        inputs = table.inputs(requests)
        assert inputs.rows.tolist() == list(range(len(requests)))
        assert inputs.seeds.tolist() == [request.params.seed for request in requests]
        assert inputs.top_ks.tolist() == [request.params.top_k for request in requests]
        assert inputs.temperatures.tolist() == [request.params.temperature for request in requests]
        assert inputs.positions.tolist() == [request.num_tokens for request in requests]
        a.token_ids.append(9)
