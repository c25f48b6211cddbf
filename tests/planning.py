"""What tests of the scheduler say in one line."""

from __future__ import annotations

import itertools

import numpy as np

from roseinfer.core.batch import SampleOutput
from roseinfer.core.request import Request
from roseinfer.scheduler.batch import Batch
from roseinfer.scheduler.scheduler import Scheduler
from tests.fake_engine import make_request

_arrivals = itertools.count()


def add(scheduler: Scheduler, request_id: str, prompt_ids: list[int], **fields: object) -> Request:
    request = Request(make_request(request_id, prompt_ids, **fields), next(_arrivals))
    assert scheduler.add(request) is None
    return request


def prompt(length: int, start: int = 0) -> list[int]:
    return list(range(start, start + length))


def plan(batch: Batch) -> dict[str, int]:
    return {row.request.request_id: row.num_new_tokens for row in batch.rows}


def outputs_of(token_ids: list[int]) -> SampleOutput:
    """As if the program had given these, each with the logprob 0."""
    return SampleOutput(np.array(token_ids, np.int32), np.zeros(len(token_ids), np.float32))
