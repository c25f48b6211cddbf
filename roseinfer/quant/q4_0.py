"""q4_0: 32 values of 4 bits under one scale: x = d * (q - 8). Value i shares a byte with value i + 16."""

from __future__ import annotations

import numpy as np

from roseinfer.quant._bits import Bytes, Floats, as_float, pack, unpack
from roseinfer.quant._fit import extreme, reciprocal, truncated

BLOCK = np.dtype([("d", "<f2"), ("qs", "u1", 16)])
BLOCK_SIZE, BLOCK_BYTES = 32, BLOCK.itemsize


def dequantize(data: Bytes) -> Floats:
    blocks = data.view(BLOCK)
    q = unpack(blocks["qs"], bits=4, run=16).astype(np.float32) - 8
    return (as_float(blocks["d"]) * q).reshape(-1)


def quantize(values: Floats) -> Bytes:
    """ggml's reference: the value of the largest magnitude becomes level 0 (-8)."""
    x = values.reshape(-1, BLOCK_SIZE)
    d = extreme(x) / -8
    blocks = np.empty(len(x), BLOCK)
    blocks["d"] = d[:, 0]
    blocks["qs"] = pack(truncated(x * reciprocal(d) + np.float32(8.5), 15), bits=4, run=16)
    return blocks.view(np.uint8)
