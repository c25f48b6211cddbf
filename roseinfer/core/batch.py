"""What one forward step reads and gives back: flat arrays that any backend understands.

Made anew in every step; not frozen, because a frozen dataclass costs twice as much to make.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]
UInt64Array = npt.NDArray[np.uint64]


@dataclass(slots=True)
class ForwardInputs:
    """T tokens of R rows (requests), of which L want logits. Every array is C-contiguous.

    Row r owns tokens `row_offsets[r]:row_offsets[r+1]`, at consecutive positions; its keys and values at
    position p live in block `block_tables[r, p // block_size]`, slot `p % block_size`. A token attends to all
    positions of its row up to its own, also those computed in earlier steps.
    """

    token_ids: Int32Array  # [T]
    positions: Int32Array  # [T]
    row_offsets: Int32Array  # [R + 1], ascending, row_offsets[0] = 0, row_offsets[R] = T
    block_tables: Int32Array  # [R, B], -1 behind a row's last block
    logit_rows: Int32Array  # [L], ascending indices into the T tokens

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


@dataclass(slots=True)
class SamplingInputs:
    """Parameters of the L logit rows, in the order of `ForwardInputs.logit_rows`. Rows may be left out of
    sampling (a prompt's inner rows): `rows` names those to be sampled.
    """

    rows: Int32Array  # [S], ascending indices into the L logit rows
    temperatures: Float32Array  # [S], 0 = greedy
    top_ks: Int32Array  # [S], 0 = off
    top_ps: Float32Array  # [S]
    min_ps: Float32Array  # [S]
    seeds: UInt64Array  # [S]
    choices: Int32Array  # [S], index among a request's n choices
    positions: Int64Array  # [S], the absolute position of the token that is being sampled
    num_logprobs: Int32Array  # [S], -1 = none


@dataclass(slots=True)
class SampleOutput:
    """What was sampled. A row whose logits hold a NaN (or nothing but -inf) has token id -1."""

    token_ids: Int32Array  # [S]
    logprobs: Float32Array  # [S], of the sampled token; NaN where none were asked for
    top_ids: list[Int32Array] = field(default_factory=list)  # per row [num_logprobs], most likely first
    top_logprobs: list[Float32Array] = field(default_factory=list)
