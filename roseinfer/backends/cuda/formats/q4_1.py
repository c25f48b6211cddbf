"""q4_1: nibbles uint8[rows, K / 2], (scale, minimum) int32[rows, K / 32] of two float16. 5 bits per weight."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from roseinfer.backends.cuda.formats._repack import as_rows, pair_halves, pair_nibbles
from roseinfer.backends.cuda.formats._unpack import half_as_float, load_columns, nibbles, spread
from roseinfer.backends.cuda.kernels.arithmetic import cast
from roseinfer.checkpoints.tensor import Tensor
from roseinfer.quant._bits import unpack
from roseinfer.quant.q4_1 import BLOCK


def pack(matrix: Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    blocks = matrix.data.view(BLOCK)
    values = pair_nibbles(unpack(blocks["qs"], bits=4, run=16))
    return as_rows(values, matrix.num_rows), as_rows(pair_halves(blocks["d"], blocks["m"]), matrix.num_rows)


@triton.jit
def tile(values, scales, a2, a3, rows, k0, num_columns, BLOCK_K: tl.constexpr, DTYPE: tl.constexpr):
    q = nibbles(load_columns(values, rows, num_columns // 32 * 16, k0 // BLOCK_K, BLOCK_K // 2))
    pairs = load_columns(scales, rows, num_columns // 32, k0 // BLOCK_K, BLOCK_K // 32)
    return cast(q * spread(half_as_float(pairs), 32) + spread(half_as_float(pairs >> 16), 32), DTYPE)
