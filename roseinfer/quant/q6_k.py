"""q6_k: 256 values of 6 bits in 16 sub-blocks of 16 with signed 8-bit scales: x = d * scale * (q - 32).

In each half of 128 values, `ql` holds two planes of 64 low nibbles and `qh` four planes of 32 upper bit pairs.
"""

from __future__ import annotations

import numpy as np

from roseinfer.quant._bits import Bytes, Floats, as_float, pack, unpack
from roseinfer.quant._fit import divide, extreme, fit_symmetric, levels

BLOCK = np.dtype([("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", "<f2")])
BLOCK_SIZE, BLOCK_BYTES = 256, BLOCK.itemsize


def _multiplier(blocks: np.ndarray) -> Floats:
    return (as_float(blocks["d"]) * blocks["scales"].astype(np.float32))[..., None]  # [n, 16, 1]


def dequantize(data: Bytes) -> Floats:
    blocks = data.view(BLOCK)
    q = unpack(blocks["ql"], bits=4, run=64) | (unpack(blocks["qh"], bits=2, run=32) << 4)
    return (_multiplier(blocks) * (q.reshape(-1, 16, 16).astype(np.float32) - 32)).reshape(-1)


def quantize(values: Floats) -> Bytes:
    x = values.reshape(-1, 16, 16)
    scale = fit_symmetric(x, 32)[..., 0]
    blocks = np.empty(len(x), BLOCK)
    blocks["d"] = extreme(scale)[:, 0] / -128
    blocks["scales"] = levels(divide(scale, as_float(blocks["d"])), -128, 127)
    q = (levels(divide(x, _multiplier(blocks)), -32, 31) + 32).astype(np.uint8).reshape(-1, BLOCK_SIZE)
    blocks["ql"], blocks["qh"] = pack(q & 15, bits=4, run=64), pack(q >> 4, bits=2, run=32)
    return blocks.view(np.uint8)
