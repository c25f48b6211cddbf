"""q4_0: nibbles uint8[rows, K / 2], scales of each 32 as int32[rows, K / 64] of two float16. 4.5 bits per weight."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from roseinfer.backends.cuda.formats._repack import as_rows, as_words, pair_nibbles
from roseinfer.backends.cuda.formats._unpack import halves, load_columns, nibbles, spread
from roseinfer.backends.cuda.kernels.arithmetic import cast
from roseinfer.checkpoints.tensor import Tensor
from roseinfer.quant._bits import unpack
from roseinfer.quant.q4_0 import BLOCK


def pack(matrix: Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    blocks = matrix.data.view(BLOCK)
    values = pair_nibbles(unpack(blocks["qs"], bits=4, run=16))
    return as_rows(values, matrix.num_rows), as_words(blocks["d"], matrix.num_rows)


@triton.jit
def tile(values, scales, a2, a3, rows, k0, num_columns, BLOCK_K: tl.constexpr, DTYPE: tl.constexpr):
    q = nibbles(load_columns(values, rows, num_columns // 32 * 16, k0 // BLOCK_K, BLOCK_K // 2)) - 8.0
    d = halves(load_columns(scales, rows, (num_columns + 32) // 64, k0 // BLOCK_K, BLOCK_K // 64))
    return cast(q * spread(d, 32), DTYPE)
