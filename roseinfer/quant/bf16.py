"""bf16: the upper half of an IEEE single, little-endian."""

from __future__ import annotations

import numpy as np

from roseinfer.quant._bits import Bytes, Floats

BLOCK_SIZE, BLOCK_BYTES = 1, 2


def dequantize(data: Bytes) -> Floats:
    return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)


def quantize(values: Floats) -> Bytes:
    """Rounds to nearest, ties to even; a NaN stays one."""
    bits = values.view(np.uint32)
    rounded = (bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16
    quiet_nan = (bits >> 16) | 0x40
    return np.where(np.isnan(values), quiet_nan, rounded).astype("<u2").view(np.uint8)
