"""`LogitEdits` on the device: copies of rows of logits, with penalties, masks and biases.

Masks come before biases here, in the pass that copies: neither makes anything but -inf of a forbidden token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from roseinfer.backends.cuda.kernels.launch import launch
from roseinfer.backends.cuda.kernels.sampling import load_parameter

# Rows of `DeviceEdits.parameters`; floats are there by their bits.
EDIT_PARAMETERS = (
    "row",
    "repetition",
    "presence",
    "frequency",
    "history_start",
    "history_end",
    "output_start",
    "counts_row",
    "bias_start",
    "bias_end",
    "mask_row",
)
(
    _ROW, _REPETITION, _PRESENCE, _FREQUENCY, _HISTORY_START, _HISTORY_END, _OUTPUT_START, _COUNTS_ROW,
    _BIAS_START, _BIAS_END, _MASK_ROW,
) = (tl.constexpr(i) for i in range(len(EDIT_PARAMETERS)))  # fmt: skip

_SEEN = tl.constexpr(1 << 30)  # in a count: the token is in the history before the output
_BLOCK = 1024


@dataclass(frozen=True)
class DeviceEdits:
    """What E rows want; every tensor is on the device."""

    parameters: torch.Tensor  # int32[len(EDIT_PARAMETERS), E]; starts and ends are indices into the lists below
    history: torch.Tensor  # int32[H]
    bias_ids: torch.Tensor  # int32[N]
    bias_values: torch.Tensor  # int32[N], the bits of float32
    masks: torch.Tensor  # int32[M * mask_words]
    mask_words: int
    counts: torch.Tensor  # int32[P, vocab], of any content: "counts_row" is a row of it, -1 without a history
    max_history: int  # of any row
    max_biases: int


def edit_rows(logits: torch.Tensor, edits: DeviceEdits, edited: torch.Tensor) -> None:
    """Makes edited float32[E, vocab] of rows of logits float32[L, vocab]."""
    num_edits, vocab_size = edited.shape
    parameters = edits.parameters
    if edits.max_history > 0:
        edits.counts.zero_()
        grid = (num_edits, triton.cdiv(edits.max_history, _BLOCK))
        launch(count_kernel, grid, parameters, edits.history, edits.counts, num_edits, vocab_size, BLOCK=_BLOCK)
    launch(
        edit_kernel,
        (num_edits, triton.cdiv(vocab_size, _BLOCK)),
        *(logits, parameters, edits.counts, edits.masks, edited),
        *(logits.stride(0), num_edits, edits.mask_words, vocab_size),
        BLOCK=_BLOCK,
    )
    if edits.max_biases > 0:
        grid = (num_edits, triton.cdiv(edits.max_biases, _BLOCK))
        lists = (edits.bias_ids, edits.bias_values)
        launch(bias_kernel, grid, parameters, *lists, edited, num_edits, vocab_size, BLOCK=_BLOCK)


@triton.jit(do_not_specialize=["num_edits"])
def count_kernel(parameters, history, counts, num_edits, vocab_size, BLOCK: tl.constexpr):
    """counts[row, token] becomes how often the token is in the row's output, plus _SEEN if it is before it."""
    parameters += tl.program_id(0)
    start = load_parameter(parameters, _HISTORY_START, num_edits, tl.int32)
    end = load_parameter(parameters, _HISTORY_END, num_edits, tl.int32)
    output_start = load_parameter(parameters, _OUTPUT_START, num_edits, tl.int32)
    counts_row = load_parameter(parameters, _COUNTS_ROW, num_edits, tl.int32).to(tl.int64)
    index = start + tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    token = tl.load(history + index, mask=index < end, other=0)
    count = counts + counts_row * vocab_size + token
    tl.atomic_or(count, _SEEN, mask=(index < end) & (index < output_start), sem="relaxed")
    tl.atomic_add(count, 1, mask=(index < end) & (index >= output_start), sem="relaxed")


@triton.jit
def penalised(x, counts, repetition, presence, frequency):
    repeated = tl.where(x > 0, tl.div_rn(x, repetition), x * repetition)
    x = tl.where(counts > 0, repeated, x)
    num_written = counts & (_SEEN - 1)
    return tl.where(num_written > 0, x - presence - frequency * num_written.to(tl.float32), x)


@triton.jit(do_not_specialize=["num_edits", "mask_words"])
def edit_kernel(
    logits, parameters, counts, masks, edited, logits_stride, num_edits, mask_words, vocab_size, BLOCK: tl.constexpr
):  # fmt: skip
    """Penalties and masks, one program for each row and BLOCK tokens."""
    index = tl.program_id(0)
    parameters += index
    ids = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_token = ids < vocab_size
    row = load_parameter(parameters, _ROW, num_edits, tl.int32).to(tl.int64)
    x = tl.load(logits + row * logits_stride + ids, mask=is_token, other=0.0)
    counts_row = load_parameter(parameters, _COUNTS_ROW, num_edits, tl.int32).to(tl.int64)
    if counts_row >= 0:
        count = tl.load(counts + counts_row * vocab_size + ids, mask=is_token, other=0)
        repetition = load_parameter(parameters, _REPETITION, num_edits, tl.float32)
        presence = load_parameter(parameters, _PRESENCE, num_edits, tl.float32)
        frequency = load_parameter(parameters, _FREQUENCY, num_edits, tl.float32)
        x = penalised(x, count, repetition, presence, frequency)
    mask_row = load_parameter(parameters, _MASK_ROW, num_edits, tl.int32).to(tl.int64)
    if mask_row >= 0:
        is_covered = is_token & (ids // 32 < mask_words)
        words = tl.load(masks + mask_row * mask_words + ids // 32, mask=is_covered, other=0)
        x = tl.where(((words >> (ids % 32)) & 1) > 0, x, float("-inf"))
    tl.store(edited + index.to(tl.int64) * vocab_size + ids, x, mask=is_token)


@triton.jit(do_not_specialize=["num_edits"])
def bias_kernel(parameters, bias_ids, bias_values, edited, num_edits, vocab_size, BLOCK: tl.constexpr):
    """A row's biased tokens are distinct, so no two programs write to one."""
    row = tl.program_id(0)
    parameters += row
    index = (
        load_parameter(parameters, _BIAS_START, num_edits, tl.int32) + tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    )
    is_bias = index < load_parameter(parameters, _BIAS_END, num_edits, tl.int32)
    token = tl.load(bias_ids + index, mask=is_bias, other=0)
    bias = tl.load(bias_values + index, mask=is_bias, other=0).to(tl.float32, bitcast=True)
    logit = edited + row.to(tl.int64) * vocab_size + token
    tl.store(logit, tl.load(logit, mask=is_bias, other=0.0) + bias, mask=is_bias)
