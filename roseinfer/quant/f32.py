"""f32: IEEE single precision, little-endian."""

from __future__ import annotations

import numpy as np

from roseinfer.quant._bits import Bytes, Floats

BLOCK_SIZE, BLOCK_BYTES = 1, 4


def dequantize(data: Bytes) -> Floats:
    """A view of the bytes."""
    return data.view("<f4")


def quantize(values: Floats) -> Bytes:
    return np.ascontiguousarray(values, "<f4").view(np.uint8)
