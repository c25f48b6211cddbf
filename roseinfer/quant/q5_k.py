"""q5_k: 256 values of 5 bits in 8 sub-blocks of 32: x = d * scale * q - dmin * offset.

The low four bits lie as in q4_k; the fifth bit of sub-block i is bit i of the 32 bytes of `qh`.
"""

from __future__ import annotations

import numpy as np

from roseinfer.quant._bits import Bytes, Floats, as_float, pack, unpack
from roseinfer.quant._k_scales import affine, quantize_affine

BLOCK = np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", 128)])
BLOCK_SIZE, BLOCK_BYTES = 256, BLOCK.itemsize


def dequantize(data: Bytes) -> Floats:
    blocks = data.view(BLOCK)
    multiplier, subtrahend = affine(as_float(blocks["d"]), as_float(blocks["dmin"]), blocks["scales"])
    q = unpack(blocks["qs"], bits=4, run=32) | (unpack(blocks["qh"], bits=1, run=32) << 4)
    return (multiplier * q.reshape(-1, 8, 32).astype(np.float32) - subtrahend).reshape(-1)


def quantize(values: Floats) -> Bytes:
    x = values.reshape(-1, BLOCK_SIZE)
    blocks = np.empty(len(x), BLOCK)
    blocks["d"], blocks["dmin"], blocks["scales"], q = quantize_affine(x, 31)
    blocks["qs"], blocks["qh"] = pack(q & 15, bits=4, run=32), pack(q >> 4, bits=1, run=32)
    return blocks.view(np.uint8)
