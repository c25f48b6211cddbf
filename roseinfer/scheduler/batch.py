"""The plan of one step, and the flat arrays a program reads made from it.

Between two steps the caches have seen a whole model go by. So a step costs by the code and data it touches more than
by what it computes: arrays grow by plain appends and are wrapped by NumPy once, whatever the number of rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from roseinfer.core.batch import ForwardInputs, Int32Array, SamplingInputs
from roseinfer.core.messages import AddRequest
from roseinfer.core.request import Int32List, Request, int32_list

# float32 would turn a smaller top_p into 0, which keeps no token at all.
_MIN_TOP_P = float(np.finfo(np.float32).tiny)
_INT32 = np.dtype(np.int32)


class BatchRow:
    """The next `num_new_tokens` uncomputed tokens of a request.

    `wants_logits`: only the last token of a request that catches up in this step; what follows the others is known.
    """

    __slots__ = ("num_new_tokens", "request", "wants_logits")

    def __init__(self, request: Request, num_new_tokens: int) -> None:
        self.request = request
        self.num_new_tokens = num_new_tokens
        self.wants_logits = num_new_tokens == request.num_uncomputed_tokens


class Batch:
    """The rows of one step, and the requests whose next token it samples. True if there is anything to compute."""

    __slots__ = ("rows", "sampled_requests")

    def __init__(self, rows: list[BatchRow]) -> None:
        self.rows = rows
        self.sampled_requests = [row.request for row in rows if row.wants_logits]

    def __bool__(self) -> bool:
        return bool(self.rows)

    def forward_inputs(self) -> ForwardInputs:
        token_ids, positions, row_offsets, logit_rows = int32_list(), int32_list(), int32_list([0]), int32_list()
        for row in self.rows:
            start = row.request.num_computed_tokens
            stop = start + row.num_new_tokens
            token_ids += row.request.token_ids[start:stop]
            positions.extend(range(start, stop))
            row_offsets.append(len(token_ids))
            if row.wants_logits:
                logit_rows.append(len(token_ids) - 1)
        return ForwardInputs(
            token_ids=_as_array(token_ids),
            positions=_as_array(positions),
            row_offsets=_as_array(row_offsets),
            block_tables=self._block_tables(),
            logit_rows=_as_array(logit_rows),
        )

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

    def __init__(self) -> None:
        self._requests: list[Request] = []
        self._parameters = _parameters([])

    def inputs(self, requests: list[Request]) -> SamplingInputs:
        """For requests that are about to get their next token."""
        if requests != self._requests:
            self._requests, self._parameters = requests, _parameters([request.params for request in requests])
        positions = np.array([len(request.token_ids) for request in requests], dtype=np.int64)
        return SamplingInputs(**self._parameters, positions=positions)


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
