"""q5_0: 32 values of 5 bits under one scale: x = d * (q - 16). The fifth bits are one little-endian word."""

from __future__ import annotations

import numpy as np

from roseinfer.quant._bits import Bytes, Floats, as_float, pack, unpack
from roseinfer.quant._fit import extreme, reciprocal, truncated

BLOCK = np.dtype([("d", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)])
BLOCK_SIZE, BLOCK_BYTES = 32, BLOCK.itemsize


def dequantize(data: Bytes) -> Floats:
    blocks = data.view(BLOCK)
    q = unpack(blocks["qs"], bits=4, run=16) | (unpack(blocks["qh"], bits=1, run=1) << 4)
    return (as_float(blocks["d"]) * (q.astype(np.float32) - 16)).reshape(-1)


def quantize(values: Floats) -> Bytes:
    """ggml's reference: the value of the largest magnitude becomes level 0 (-16)."""
    x = values.reshape(-1, BLOCK_SIZE)
    d = extreme(x) / -16
    q = truncated(x * reciprocal(d) + np.float32(16.5), 31)
    blocks = np.empty(len(x), BLOCK)
    blocks["d"] = d[:, 0]
    blocks["qh"], blocks["qs"] = pack(q >> 4, bits=1, run=1), pack(q & 15, bits=4, run=16)
    return blocks.view(np.uint8)
