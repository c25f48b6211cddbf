"""f16: IEEE half precision, little-endian."""

from __future__ import annotations

import numpy as np

from roseinfer.quant._bits import Bytes, Floats

BLOCK_SIZE, BLOCK_BYTES = 1, 2


def dequantize(data: Bytes) -> Floats:
    return data.view("<f2").astype(np.float32)


def quantize(values: Floats) -> Bytes:
    """Rounds to nearest, ties to even; what is too large becomes infinite."""
    with np.errstate(over="ignore"):
        return values.astype("<f2").view(np.uint8)
