"""The plan of one step, and the flat arrays a program reads made from it.

Built anew in every step with a fixed number of NumPy calls; per row there is a slice and an append or two.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from roseinfer.core.batch import ForwardInputs, Int32Array, SamplingInputs
from roseinfer.core.request import Request

# float32 would turn a smaller top_p into 0, which keeps no token at all.
_MIN_TOP_P = float(np.finfo(np.float32).tiny)


class BatchRow(NamedTuple):
    """The next `num_new_tokens` uncomputed tokens of a request."""

    request: Request
    num_new_tokens: int

    @property
    def wants_logits(self) -> bool:
        """Only the last token of a request that catches up in this step: what follows the others is known."""
        return self.num_new_tokens == self.request.num_uncomputed_tokens


class Batch(NamedTuple):
    """The rows of one step. True if there is anything to compute."""

    rows: list[BatchRow]

    def __bool__(self) -> bool:
        return bool(self.rows)

    @property
    def sampled_requests(self) -> list[Request]:
        return [row.request for row in self.rows if row.wants_logits]

    def forward_inputs(self) -> ForwardInputs:
        counts = np.array([row.num_new_tokens for row in self.rows], dtype=np.int32)
        starts = np.array([row.request.num_computed_tokens for row in self.rows], dtype=np.int32)
        row_offsets = np.zeros(len(self.rows) + 1, dtype=np.int32)
        np.cumsum(counts, out=row_offsets[1:])
        slices = [
            request.token_ids.view(request.num_computed_tokens, request.num_computed_tokens + count)
            for request, count in self.rows
        ]
        wants_logits = [row.wants_logits for row in self.rows]
        return ForwardInputs(
            token_ids=np.concatenate(slices),
            positions=np.arange(row_offsets[-1], dtype=np.int32) + np.repeat(starts - row_offsets[:-1], counts),
            row_offsets=row_offsets,
            block_tables=self._block_tables(),
            logit_rows=row_offsets[1:][wants_logits] - np.int32(1),
        )

    def sampling_inputs(self) -> SamplingInputs:
        requests = self.sampled_requests
        params = [request.params for request in requests]
        return SamplingInputs(
            rows=np.arange(len(requests), dtype=np.int32),
            temperatures=np.array([p.temperature for p in params], dtype=np.float32),
            top_ks=np.array([p.top_k for p in params], dtype=np.int32),
            top_ps=np.array([max(p.top_p, _MIN_TOP_P) for p in params], dtype=np.float32),
            min_ps=np.array([p.min_p for p in params], dtype=np.float32),
            seeds=np.array([p.seed for p in params], dtype=np.uint64),
            choices=np.array([p.choice for p in params], dtype=np.int32),
            positions=np.array([request.num_tokens for request in requests], dtype=np.int32),
            num_logprobs=np.array([p.num_logprobs for p in params], dtype=np.int32),
        )

    def _block_tables(self) -> Int32Array:
        """[R, B], -1 behind a row's last block."""
        tables = [row.request.block_table.view() for row in self.rows]
        padded = np.full((len(tables), max(map(len, tables))), -1, dtype=np.int32)
        for row, table in zip(padded, tables, strict=True):
            row[: len(table)] = table
        return padded
