"""The 12 bytes in which q4_k and q5_k pack eight 6-bit scales and eight 6-bit offsets.

Bytes 0-3 and 4-7 hold scales and offsets 0-3 in their low six bits; bytes 8-11 hold the low nibbles of scales
(low) and offsets (high) 4-7, whose top two bits lie above scales and offsets 0-3.
"""

from __future__ import annotations

import numpy as np

from roseinfer.quant._bits import Bytes, Floats
from roseinfer.quant._fit import divide, fit_affine, levels

SUB_BLOCKS, SUB_BLOCK_SIZE = 8, 32


def unpack_scales(packed: Bytes) -> tuple[Bytes, Bytes]:
    """[n, 12] → scales [n, 8], offsets [n, 8]."""
    low, high, rest = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([low & 0x3F, (rest & 0x0F) | ((low >> 2) & 0x30)], axis=1)
    offsets = np.concatenate([high & 0x3F, (rest >> 4) | ((high >> 2) & 0x30)], axis=1)
    return scales, offsets


def pack_scales(scales: Bytes, offsets: Bytes) -> Bytes:
    low = scales[:, :4] | ((scales[:, 4:] >> 4) << 6)
    high = offsets[:, :4] | ((offsets[:, 4:] >> 4) << 6)
    return np.concatenate([low, high, (scales[:, 4:] & 0x0F) | ((offsets[:, 4:] & 0x0F) << 4)], axis=1)


def affine(d: Floats, dmin: Floats, packed: Bytes) -> tuple[Floats, Floats]:
    """What the values of each sub-block are multiplied by, and what is subtracted then: [n, 8, 1] each."""
    scales, offsets = unpack_scales(packed)
    return (d * scales.astype(np.float32))[..., None], (dmin * offsets.astype(np.float32))[..., None]


def quantize_affine(values: Floats, highest: int) -> tuple[np.ndarray, np.ndarray, Bytes, Bytes]:
    """d [n] and dmin [n] in float16, the packed scales [n, 12] and the levels [n, 256] of the values [n, 256]."""
    x = values.reshape(-1, SUB_BLOCKS, SUB_BLOCK_SIZE)
    scale, offset = (fitted[..., 0] for fitted in fit_affine(x, highest))  # [n, 8]
    d, scales = quantize_positive(scale, 63)
    dmin, offsets = quantize_positive(offset, 63)
    packed = pack_scales(scales, offsets)
    multiplier, subtrahend = affine(d.astype(np.float32)[:, None], dmin.astype(np.float32)[:, None], packed)
    q = levels(divide(x + subtrahend, multiplier), 0, highest).astype(np.uint8)
    return d, dmin, packed, q.reshape(values.shape)


def quantize_positive(values: Floats, highest: int) -> tuple[np.ndarray, Bytes]:
    """Values ≥ 0 [n, k] as float16 [n] × levels 0..highest [n, k]."""
    d = (values.max(axis=1) / highest).astype(np.float16)
    return d, levels(divide(values, d.astype(np.float32)[:, None]), 0, highest).astype(np.uint8)
