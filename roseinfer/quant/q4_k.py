"""q4_k: 256 values of 4 bits in 8 sub-blocks of 32: x = d * scale * q - dmin * offset.

32 bytes hold two sub-blocks, one in the low and one in the high nibbles. Scales as in `_k_scales`.
"""

from __future__ import annotations

import numpy as np

from roseinfer.quant._bits import Bytes, Floats, as_float, pack, unpack
from roseinfer.quant._k_scales import affine, quantize_affine

BLOCK = np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qs", "u1", 128)])
BLOCK_SIZE, BLOCK_BYTES = 256, BLOCK.itemsize


def dequantize(data: Bytes) -> Floats:
    blocks = data.view(BLOCK)
    multiplier, subtrahend = affine(as_float(blocks["d"]), as_float(blocks["dmin"]), blocks["scales"])
    q = unpack(blocks["qs"], bits=4, run=32).reshape(-1, 8, 32).astype(np.float32)
    return (multiplier * q - subtrahend).reshape(-1)


def quantize(values: Floats) -> Bytes:
    x = values.reshape(-1, BLOCK_SIZE)
    blocks = np.empty(len(x), BLOCK)
    blocks["d"], blocks["dmin"], blocks["scales"], q = quantize_affine(x, 15)
    blocks["qs"] = pack(q, bits=4, run=32)
    return blocks.view(np.uint8)
