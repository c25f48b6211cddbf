"""q8_0: 32 values of 8 bits under one scale: x = d * q."""

from __future__ import annotations

import numpy as np

from roseinfer.quant._bits import Bytes, Floats, as_float
from roseinfer.quant._fit import reciprocal

BLOCK = np.dtype([("d", "<f2"), ("qs", "i1", 32)])
BLOCK_SIZE, BLOCK_BYTES = 32, BLOCK.itemsize


def dequantize(data: Bytes) -> Floats:
    blocks = data.view(BLOCK)
    return (as_float(blocks["d"]) * blocks["qs"].astype(np.float32)).reshape(-1)


def quantize(values: Floats) -> Bytes:
    """ggml's reference: the largest magnitude becomes ±127; ties round away from zero."""
    x = values.reshape(-1, BLOCK_SIZE)
    d = np.abs(x).max(axis=1, keepdims=True) / 127
    scaled = x * reciprocal(d)
    whole = np.trunc(scaled)
    blocks = np.empty(len(x), BLOCK)
    blocks["d"] = d[:, 0]
    blocks["qs"] = whole + np.trunc(2 * (scaled - whole))
    return blocks.view(np.uint8)
