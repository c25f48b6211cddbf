"""Rows of a table, by token id or by position."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from roseinfer.backends.cuda.formats import PackedMatrix
from roseinfer.backends.cuda.kernels.arithmetic import cast
from roseinfer.backends.cuda.kernels.launch import is_interpreted, launch

COLUMNS = 256


def embedding(ids: torch.Tensor, weight: PackedMatrix, out: torch.Tensor, scale: float) -> None:
    """out [T, W] = scale * weight[ids], in float32 before it is rounded; a negative id in ids i32[T] reads row 0."""
    num_tokens = ids.shape[0]
    block = 32 if is_interpreted() else 1
    launch(
        _embedding_kernel,
        (triton.cdiv(num_tokens, block),),
        ids,
        *weight.pointers,
        out,
        num_tokens,
        weight.num_columns,
        out.stride(0),
        scale,
        TILE=weight.tile,
        BLOCK_T=block,
        BLOCK_K=COLUMNS,
    )


@triton.jit(do_not_specialize=["num_tokens"])
def _embedding_kernel(
    ids,
    a0,
    a1,
    a2,
    a3,
    out,
    num_tokens,
    num_columns,
    out_stride,
    scale,
    TILE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tokens = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    rows = tl.maximum(tl.load(ids + tokens, mask=tokens < num_tokens, other=0), 0)
    for k in range(0, num_columns, BLOCK_K):
        columns = k + tl.arange(0, BLOCK_K)
        values = TILE(a0, a1, a2, a3, rows, k, num_columns, BLOCK_K, tl.float32) * scale
        to = out + tokens.to(tl.int64)[:, None] * out_stride + columns[None, :]
        exists = (tokens < num_tokens)[:, None] & (columns < num_columns)[None, :]
        tl.store(to, cast(values, out.dtype.element_ty), mask=exists)
