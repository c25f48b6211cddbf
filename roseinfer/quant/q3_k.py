"""q3_k: 256 values of 3 bits in 16 sub-blocks of 16: x = d * (scale - 32) * (q - 4).

The low two bits lie as in q2_k, the third in `hmask` (eight planes of 32). The sixteen 6-bit scales: the low
nibbles of 0-7 and 8-15 in bytes 0-7, the top two bits of four sub-blocks in each of bytes 8-11.
"""

from __future__ import annotations

import numpy as np

from roseinfer.quant._bits import Bytes, Floats, as_float, pack, unpack
from roseinfer.quant._fit import divide, extreme, fit_symmetric, levels

BLOCK = np.dtype([("hmask", "u1", 32), ("qs", "u1", 64), ("scales", "u1", 12), ("d", "<f2")])
BLOCK_SIZE, BLOCK_BYTES = 256, BLOCK.itemsize


def _multiplier(blocks: np.ndarray) -> Floats:
    packed = blocks["scales"]
    scales = unpack(packed[:, :8], bits=4, run=8) | (unpack(packed[:, 8:], bits=2, run=4) << 4)
    return (as_float(blocks["d"]) * (scales.astype(np.float32) - 32))[..., None]  # [n, 16, 1]


def dequantize(data: Bytes) -> Floats:
    blocks = data.view(BLOCK)
    q = unpack(blocks["qs"], bits=2, run=32) | (unpack(blocks["hmask"], bits=1, run=32) << 2)
    return (_multiplier(blocks) * (q.reshape(-1, 16, 16).astype(np.float32) - 4)).reshape(-1)


def quantize(values: Floats) -> Bytes:
    x = values.reshape(-1, 16, 16)
    scale = fit_symmetric(x, 4)[..., 0]
    blocks = np.empty(len(x), BLOCK)
    blocks["d"] = extreme(scale)[:, 0] / -32
    scales = (levels(divide(scale, as_float(blocks["d"])), -32, 31) + 32).astype(np.uint8)
    blocks["scales"][:, :8] = pack(scales & 15, bits=4, run=8)
    blocks["scales"][:, 8:] = pack(scales >> 4, bits=2, run=4)
    q = (levels(divide(x, _multiplier(blocks)), -4, 3) + 4).astype(np.uint8).reshape(-1, BLOCK_SIZE)
    blocks["qs"], blocks["hmask"] = pack(q & 3, bits=2, run=32), pack(q >> 2, bits=1, run=32)
    return blocks.view(np.uint8)
