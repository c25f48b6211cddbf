"""Bit planes: how every block format packs values smaller than a byte."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


def _shifts(bits: int) -> Bytes:
    return np.arange(0, 8, bits, dtype=np.uint8)[:, None]


def unpack(packed: Bytes, bits: int, run: int) -> Bytes:
    """[n, bytes] → [n, values]. Each `run` bytes hold 8 // bits planes of `run` values, the lowest bits first."""
    n, width = packed.shape
    planes = packed.reshape(n, width // run, 1, run) >> _shifts(bits)  # [n, runs, planes, run]
    return (planes & np.uint8(2**bits - 1)).reshape(n, width * 8 // bits)


def pack(values: npt.NDArray[np.integer[Any]], bits: int, run: int) -> Bytes:
    """[n, values] → [n, bytes], the inverse of `unpack`; values are below 2**bits."""
    n, width = values.shape
    planes = values.reshape(n, width * bits // (8 * run), 8 // bits, run) << _shifts(bits)
    packed: Bytes = np.bitwise_or.reduce(planes, axis=2, dtype=np.uint8)
    return packed.reshape(n, width * bits // 8)


def as_float(halves: npt.NDArray[np.float16]) -> Floats:
    """One float16 per block, as a float32 column [n, 1]."""
    return halves.astype(np.float32)[:, None]
