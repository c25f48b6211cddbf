from __future__ import annotations

import numpy as np

from roseinfer.core.request import IdArray, Request
from roseinfer.scheduler.batch import Batch, BatchRow
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
    inputs = Batch([BatchRow(greedy, 1), BatchRow(chunk, 2), BatchRow(sampled, 3)]).sampling_inputs()
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


def test_an_id_array_grows_and_keeps_its_ids() -> None:
    ids = IdArray([1, 2])
    for i in range(100):
        ids.append(i)
    ids.extend(range(100, 300))
    assert ids.tolist() == [1, 2, *range(300)]
    assert ids[-1] == 299
    assert ids.view(2, 5).tolist() == [0, 1, 2]
    ids[0] = 7
    assert ids[0] == 7
    ids.clear()
    assert (len(ids), ids.tolist()) == (0, [])
