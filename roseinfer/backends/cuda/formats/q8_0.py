"""q8_0: values + 128 as uint8[rows, K], scales of each 32 as int32[rows, K / 64] of two float16. 8.5 bits a weight."""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

from roseinfer.backends.cuda.formats._repack import as_rows, as_words
from roseinfer.backends.cuda.formats._unpack import as_float, halves, load_columns, spread
from roseinfer.backends.cuda.kernels.arithmetic import cast
from roseinfer.checkpoints.tensor import Tensor
from roseinfer.quant.q8_0 import BLOCK


def pack(matrix: Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    blocks = matrix.data.view(BLOCK)
    values = blocks["qs"].view(np.uint8) ^ np.uint8(128)
    return as_rows(values, matrix.num_rows), as_words(blocks["d"], matrix.num_rows)


@triton.jit
def tile(values, scales, a2, a3, rows, k0, num_columns, BLOCK_K: tl.constexpr, DTYPE: tl.constexpr):
    q = as_float(load_columns(values, rows, num_columns // 32 * 32, k0 // BLOCK_K, BLOCK_K)) - 128.0
    d = halves(load_columns(scales, rows, (num_columns + 32) // 64, k0 // BLOCK_K, BLOCK_K // 64))
    return cast(q * spread(d, 32), DTYPE)
