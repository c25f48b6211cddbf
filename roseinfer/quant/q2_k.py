"""q2_k: 256 values of 2 bits in 16 sub-blocks of 16: x = d * scale * q - dmin * offset.

Scale and offset are the low and the high nibble of a sub-block's byte. 32 bytes hold four planes of 32 values.
"""

from __future__ import annotations

import numpy as np

from roseinfer.quant._bits import Bytes, Floats, as_float, pack, unpack
from roseinfer.quant._fit import divide, fit_affine, levels
from roseinfer.quant._k_scales import quantize_positive

BLOCK = np.dtype([("scales", "u1", 16), ("qs", "u1", 64), ("d", "<f2"), ("dmin", "<f2")])
BLOCK_SIZE, BLOCK_BYTES = 256, BLOCK.itemsize


def _affine(blocks: np.ndarray) -> tuple[Floats, Floats]:
    scales = blocks["scales"]
    multiplier = as_float(blocks["d"]) * (scales & 15).astype(np.float32)
    subtrahend = as_float(blocks["dmin"]) * (scales >> 4).astype(np.float32)
    return multiplier[..., None], subtrahend[..., None]  # [n, 16, 1]


def dequantize(data: Bytes) -> Floats:
    blocks = data.view(BLOCK)
    multiplier, subtrahend = _affine(blocks)
    q = unpack(blocks["qs"], bits=2, run=32).reshape(-1, 16, 16).astype(np.float32)
    return (multiplier * q - subtrahend).reshape(-1)


def quantize(values: Floats) -> Bytes:
    x = values.reshape(-1, 16, 16)
    scale, offset = (fitted[..., 0] for fitted in fit_affine(x, 3))
    blocks = np.empty(len(x), BLOCK)
    blocks["d"], scales = quantize_positive(scale, 15)
    blocks["dmin"], offsets = quantize_positive(offset, 15)
    blocks["scales"] = scales | (offsets << 4)
    multiplier, subtrahend = _affine(blocks)
    q = levels(divide(x + subtrahend, multiplier), 0, 3).astype(np.uint8)
    blocks["qs"] = pack(q.reshape(-1, BLOCK_SIZE), bits=2, run=32)
    return blocks.view(np.uint8)
