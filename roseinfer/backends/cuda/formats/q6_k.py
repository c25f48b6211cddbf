"""q6_k: low nibbles uint8[rows, K / 2], upper bit pairs uint8[rows, K / 4], scales + 128 of each 16 as the bytes of
int32[rows, K / 64], and d of each 256 as float32[rows, K / 256]. 6.625 bits per weight.

Of each 16 values, byte j of the upper bits has those of 2 j, 2 j + 1, 2 j + 8 and 2 j + 9: the very ones that one
thread holds as an operand of a matrix product.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

from roseinfer.backends.cuda.formats._repack import as_rows, as_words, pair_nibbles
from roseinfer.backends.cuda.formats._unpack import as_float, interleave, load_columns, spread
from roseinfer.backends.cuda.kernels.arithmetic import cast
from roseinfer.checkpoints.tensor import Tensor
from roseinfer.quant._bits import pack as pack_bits
from roseinfer.quant._bits import unpack
from roseinfer.quant.q6_k import BLOCK


def pack(matrix: Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    blocks = matrix.data.view(BLOCK)
    low = pair_nibbles(unpack(blocks["ql"], bits=4, run=64))
    pairs = unpack(blocks["qh"], bits=2, run=32).reshape(-1, 2, 4, 2)  # [sixteens, half, j, value]
    high = pack_bits(pairs.transpose(0, 2, 1, 3).reshape(len(pairs), 16), bits=2, run=1)
    scales = blocks["scales"].view(np.uint8) ^ np.uint8(128)
    rows = matrix.num_rows
    return (
        as_rows(low, rows),
        as_rows(high, rows),
        as_words(scales, rows),
        as_rows(blocks["d"].astype(np.float32), rows),
    )


@triton.jit
def _upper_bits(high):
    """[rows, n] → the bit pairs in them, four bits up, in the order of their values: [rows, 4 n]."""
    shape: tl.constexpr = (high.shape[0], high.shape[1] // 4, 8)
    first = tl.reshape(interleave(high & 3, (high >> 2) & 3), shape)
    second = tl.reshape(interleave((high >> 4) & 3, (high >> 6) & 3), shape)
    ordered = tl.permute(tl.join(first, second), (0, 1, 3, 2))  # [rows, n / 4, 2, 8]
    return tl.reshape(ordered, (high.shape[0], 4 * high.shape[1])) << 4


@triton.jit
def _bytes(words):
    """[rows, n] int32 → the [rows, 4 n] bytes in them."""
    even = interleave(words & 0xFF, (words >> 16) & 0xFF)
    odd = interleave((words >> 8) & 0xFF, (words >> 24) & 0xFF)
    return interleave(even, odd)


@triton.jit
def tile(low, high, scales, outer, rows, k0, num_columns, BLOCK_K: tl.constexpr, DTYPE: tl.constexpr):
    low = load_columns(low, rows, num_columns // 256 * 128, k0 // BLOCK_K, BLOCK_K // 2)
    high = load_columns(high, rows, num_columns // 256 * 64, k0 // BLOCK_K, BLOCK_K // 4)
    words = load_columns(scales, rows, num_columns // 256 * 4, k0 // BLOCK_K, BLOCK_K // 64)
    d = tl.load(outer + rows.to(tl.int64) * (num_columns // 256) + k0 // 256)[:, None]
    q = as_float(interleave(low & 15, low >> 4) | _upper_bits(high)) - 32.0
    return cast(q * spread(d * (as_float(_bytes(words)) - 128.0), 16), DTYPE)
