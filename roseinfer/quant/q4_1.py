"""q4_1: 32 values of 4 bits with a scale and a minimum: x = d * q + m. Value i shares a byte with value i + 16."""

from __future__ import annotations

import numpy as np

from roseinfer.quant._bits import Bytes, Floats, as_float, pack, unpack
from roseinfer.quant._fit import reciprocal, truncated

BLOCK = np.dtype([("d", "<f2"), ("m", "<f2"), ("qs", "u1", 16)])
BLOCK_SIZE, BLOCK_BYTES = 32, BLOCK.itemsize


def dequantize(data: Bytes) -> Floats:
    blocks = data.view(BLOCK)
    q = unpack(blocks["qs"], bits=4, run=16).astype(np.float32)
    return (as_float(blocks["d"]) * q + as_float(blocks["m"])).reshape(-1)


def quantize(values: Floats) -> Bytes:
    """ggml's reference: minimum to maximum in 15 steps."""
    x = values.reshape(-1, BLOCK_SIZE)
    minimum = x.min(axis=1, keepdims=True)
    d = (x.max(axis=1, keepdims=True) - minimum) / 15
    blocks = np.empty(len(x), BLOCK)
    blocks["d"], blocks["m"] = d[:, 0], minimum[:, 0]
    q = truncated((x - minimum) * reciprocal(d) + np.float32(0.5), 15)
    blocks["qs"] = pack(q, bits=4, run=16)
    return blocks.view(np.uint8)
