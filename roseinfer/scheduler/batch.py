"""The plan of one step, and the flat arrays a program reads made from it.

Between two steps the caches have seen a whole model go by. So a step costs by the code and data it touches more than
by what it computes: arrays grow by plain appends and are wrapped by NumPy once, whatever the number of rows.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import numpy as np

from roseinfer.core.batch import ForwardInputs, Int32Array, SamplingInputs, ScoreInputs
from roseinfer.core.messages import AddRequest
from roseinfer.core.request import Int32List, Request, int32_list
from roseinfer.scheduler.edits import LogitRules, make_edits
from roseinfer.scheduler.plan import Plan

# float32 would turn a smaller top_p into 0, which keeps no token at all.
_MIN_TOP_P = float(np.finfo(np.float32).tiny)
_INT32 = np.dtype(np.int32)
_num_scores = attrgetter("num_scores")
_is_edited = attrgetter("is_edited")


class BatchRow:
    """The next `num_new_tokens` uncomputed tokens of a request, those at the positions [start, stop).

    `is_sampled`: the token behind the last one is chosen; for a request that catches up in this step, since what
    follows the others is known. `num_scores`: of how many the logprob of the token behind is wanted all the same.
    """

    __slots__ = ("is_sampled", "num_scores", "request", "start", "stop")

    def __init__(self, request: Request, num_new_tokens: int) -> None:
        self.request = request
        self.start = request.num_computed_tokens
        self.stop = self.start + num_new_tokens
        self.is_sampled = num_new_tokens == request.num_uncomputed_tokens
        self.num_scores = request.num_scores_of(num_new_tokens) if request.num_unscored_tokens else 0

    @property
    def num_new_tokens(self) -> int:
        return self.stop - self.start


class Batch:
    """The rows of one step, and the requests whose next token it samples. True if there is anything to compute."""

    __slots__ = ("has_scores", "plan", "rows", "sampled_requests")

    def __init__(self, rows: list[BatchRow], plan: Plan | None = None) -> None:
        self.rows = rows
        self.plan = plan or Plan(0)
        self.sampled_requests = [row.request for row in rows if row.is_sampled]
        self.has_scores = any(map(_num_scores, rows))

    def __bool__(self) -> bool:
        return bool(self.rows)

    @property
    def has_edits(self) -> bool:
        """Whether the logits of a row that is sampled may have to be changed, which takes all its tokens."""
        return any(map(_is_edited, self.sampled_requests))

    def forward_inputs(self) -> ForwardInputs:
        token_ids, positions, row_offsets, logit_rows = int32_list(), int32_list(), int32_list([0]), int32_list()
        for row in self.rows:
            start, stop = row.start, row.stop
            if row.num_scores:
                first = len(token_ids) + row.request.num_scored_tokens - start
                logit_rows.extend(range(first, first + row.num_scores))
            token_ids += row.request.token_ids[start:stop]
            positions.extend(range(start, stop))
            row_offsets.append(len(token_ids))
            if row.is_sampled:
                logit_rows.append(len(token_ids) - 1)
        return ForwardInputs(
            token_ids=_as_array(token_ids),
            positions=_as_array(positions),
            row_offsets=_as_array(row_offsets),
            block_tables=self._block_tables(),
            logit_rows=_as_array(logit_rows),
        )

    def sample_rows(self) -> Int32Array | None:
        """Of the rows of logits, those that are sampled; None for all of them."""
        if not self.has_scores:
            return None
        rows, num_logits = int32_list(), 0
        for row in self.rows:
            num_logits += row.num_scores + row.is_sampled
            if row.is_sampled:
                rows.append(num_logits - 1)
        return _as_array(rows)

    def score_inputs(self) -> ScoreInputs | None:
        """The prompts' tokens whose logprobs are wanted, row by row; None if there are none."""
        if not self.has_scores:
            return None
        rows, token_ids, num_logprobs, num_logits = int32_list(), int32_list(), int32_list(), 0
        for row in self.rows:
            first = row.request.num_scored_tokens + 1
            rows.extend(range(num_logits, num_logits + row.num_scores))
            token_ids += row.request.token_ids[first : first + row.num_scores]
            num_logprobs.extend([row.request.params.num_prompt_logprobs] * row.num_scores)
            num_logits += row.num_scores + row.is_sampled
        return ScoreInputs(_as_array(rows), _as_array(token_ids), _as_array(num_logprobs))

    def _block_tables(self) -> Int32Array:
        """[R, B], -1 behind a row's last block."""
        tables = [row.request.block_table for row in self.rows]
        padding = int32_list([-1]) * max(map(len, tables))
        padded = int32_list()
        for table in tables:
            padded += table
            padded += padding[len(table) :]
        return _as_array(padded).reshape(len(tables), -1)


class SamplingTable:
    """Makes a step's `SamplingInputs`; parameters change only when requests come or go and are kept until then."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._requests: list[Request] = []
        self._parameters = _parameters([])
        self._edited: list[tuple[int, Request]] = []  # with the row of each

    def inputs(self, requests: list[Request], rows: Int32Array | None = None) -> SamplingInputs:
        """For requests that are about to get their next token, from these rows of logits, or from all of them."""
        if requests != self._requests:
            self._requests, self._parameters = requests, _parameters([request.params for request in requests])
            self._edited = [(row, request) for row, request in enumerate(requests) if request.is_edited]
            for _, request in self._edited:
                request.logit_rules = request.logit_rules or LogitRules(request.params, self._vocab_size)
        positions = np.array([len(request.token_ids) for request in requests], dtype=np.int64)
        inputs = SamplingInputs(**self._parameters, positions=positions)
        if rows is not None:
            inputs.rows = rows
        if self._edited:
            inputs.edits = make_edits(self._edited, self._vocab_size)
        return inputs


def _parameters(params: list[AddRequest]) -> dict[str, Any]:
    return {
        "rows": np.arange(len(params), dtype=np.int32),
        "temperatures": np.array([p.temperature for p in params], dtype=np.float32),
        "top_ks": np.array([p.top_k for p in params], dtype=np.int32),
        "top_ps": np.array([max(p.top_p, _MIN_TOP_P) for p in params], dtype=np.float32),
        "min_ps": np.array([p.min_p for p in params], dtype=np.float32),
        "seeds": np.array([p.seed for p in params], dtype=np.uint64),
        "choices": np.array([p.choice for p in params], dtype=np.int32),
        "num_logprobs": np.array([p.num_logprobs for p in params], dtype=np.int32),
    }


def _as_array(values: Int32List) -> Int32Array:
    """The same memory, which must not grow any more."""
    return np.frombuffer(values, dtype=_INT32)
