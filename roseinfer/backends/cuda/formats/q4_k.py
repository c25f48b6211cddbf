"""q4_k: nibbles uint8[rows, K / 2], (scale, offset) of each 32 as the bytes of int32[rows, K / 64], and (d, dmin) of
each 256 as int32[rows, K / 256] of two float16. 4.625 bits per weight."""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

from roseinfer.backends.cuda.formats._repack import as_rows, as_words, pair_halves, pair_nibbles
from roseinfer.backends.cuda.formats._unpack import as_float, half_as_float, interleave, load_columns, nibbles, spread
from roseinfer.backends.cuda.kernels.arithmetic import cast
from roseinfer.checkpoints.tensor import Tensor
from roseinfer.quant._bits import unpack
from roseinfer.quant._k_scales import unpack_scales
from roseinfer.quant.q4_k import BLOCK


def pack(matrix: Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    blocks = matrix.data.view(BLOCK)
    values = pair_nibbles(unpack(blocks["qs"], bits=4, run=32))
    scales = np.stack(unpack_scales(blocks["scales"]), axis=-1)  # [n, 8, 2]
    outer = pair_halves(blocks["d"], blocks["dmin"])
    return as_rows(values, matrix.num_rows), as_words(scales, matrix.num_rows), as_rows(outer, matrix.num_rows)


@triton.jit
def tile(values, scales, outer, a3, rows, k0, num_columns, BLOCK_K: tl.constexpr, DTYPE: tl.constexpr):
    q = nibbles(load_columns(values, rows, num_columns // 256 * 128, k0 // BLOCK_K, BLOCK_K // 2))
    words = load_columns(scales, rows, num_columns // 256 * 4, k0 // BLOCK_K, BLOCK_K // 64)
    d = tl.load(outer + rows.to(tl.int64) * (num_columns // 256) + k0 // 256)[:, None]
    multiplier = half_as_float(d) * as_float(interleave(words & 0xFF, (words >> 16) & 0xFF))
    subtrahend = half_as_float(d >> 16) * as_float(interleave((words >> 8) & 0xFF, (words >> 24) & 0xFF))
    return cast(q * spread(multiplier, 32) - spread(subtrahend, 32), DTYPE)
