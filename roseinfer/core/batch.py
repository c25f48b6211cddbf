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
UInt32Array = npt.NDArray[np.uint32]
UInt64Array = npt.NDArray[np.uint64]

# In the place of a token.
NO_TOKEN = -1  # the logits are unsound
ALL_FORBIDDEN = -2  # they are sound, and their edits leave none of them


@dataclass(slots=True)
class ForwardInputs:
    """T tokens of R rows (requests), of which L want logits. Every array is C-contiguous.

    Row r owns tokens `row_offsets[r]:row_offsets[r+1]`, at consecutive positions; its keys and values at
    position p live in block `block_tables[r, p // block_size]`, slot `p % block_size`. A token attends to all
    positions of its row up to its own, also those computed in earlier steps.

    Where steps are launched ahead (`LookaheadProgram`), the token id -1 - i stands for whatever sampled row i of the
    launch before this one got, which only the device knows by then.
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
class LogitEdits:
    """What E of the S sampled rows want done to their logits before temperature, in this order.

    1. The logit of every distinct token in the row's history is divided by `repetitions` if it is above 0, multiplied
       by it if not.
    2. The logit of every distinct token in the row's output, the history from `output_starts` on, becomes
       `logit - presence - frequency * (how often it is there)`.
    3. `bias_values` are added; -inf forbids a token.
    4. A token whose bit in the row's mask is 0 becomes -inf; so does one that lies beyond the mask.

    Every single operation is rounded to float32. A row that was unsound before, or holds a NaN, a +inf or nothing but
    -inf after, has no token (`SampleOutput`). Lists of different lengths lie one behind the other: row e's are
    `history[history_offsets[e]:history_offsets[e + 1]]`, and so on. Every array is C-contiguous.
    """

    rows: Int32Array  # [E], ascending indices into the S sampled rows, each at most once
    repetitions: Float32Array  # [E], finite and above 0, 1 = none
    presences: Float32Array  # [E], finite, 0 = none
    frequencies: Float32Array  # [E], finite however often they count, 0 = none
    history: Int32Array  # [H], prompt and output; empty for rows without penalties
    history_offsets: Int32Array  # [E + 1], ascending from 0 to H
    output_starts: Int32Array  # [E], counted from the row's own beginning; from its length on: no output
    bias_ids: Int32Array  # [N], distinct within a row
    bias_values: Float32Array  # [N], finite or -inf
    bias_offsets: Int32Array  # [E + 1], ascending from 0 to N
    masks: UInt32Array  # [M, W], bit i of word w is token 32 w + i; W is ceil(vocab / 32) unless the last are forbidden
    mask_rows: Int32Array  # [E], index into the M masks, -1 = none


@dataclass(slots=True)
class ScoreInputs:
    """Logit rows whose next token is known: the prompt's, where its logprobs are wanted."""

    rows: Int32Array  # [S], ascending indices into the L logit rows
    token_ids: Int32Array  # [S], the tokens that follow
    num_logprobs: Int32Array  # [S], at least 0: how many of the most likely ones are wanted beside them


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
    edits: LogitEdits | None = None


@dataclass(slots=True)
class SampleOutput:
    """What was sampled, or scored.

    An unsound row, whose logits hold a NaN, a +inf or nothing but -inf, has NO_TOKEN and no logprobs; so has a row with
    a NaN or a +inf after its edits. A sound row whose edits leave nothing but -inf has ALL_FORBIDDEN and no logprobs.
    Logprobs are those of the logits before all edits.
    """

    token_ids: Int32Array  # [S]
    logprobs: Float32Array  # [S], of the sampled token; NaN where none were asked for
    top_ids: list[Int32Array] = field(default_factory=list)  # per row [num_logprobs], most likely first
    top_logprobs: list[Float32Array] = field(default_factory=list)
