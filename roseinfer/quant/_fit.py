"""The searches behind the quantisers: scales that keep a block's squared error small."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from roseinfer.quant._bits import Bytes, Floats

# By how many levels more or fewer than there are the outermost value is scaled.
_CANDIDATES = np.linspace(-1, 1, 21, dtype=np.float32)


def divide(numerator: npt.NDArray[np.floating[Any]], denominator: npt.NDArray[np.floating[Any]]) -> Floats:
    """The quotient, and 0 where the denominator is 0 or subnormal (its reciprocal may overflow)."""
    numerator, denominator = np.broadcast_arrays(numerator, denominator)
    sound = np.abs(denominator) >= np.finfo(np.float32).tiny
    quotient = np.zeros(numerator.shape, np.float32)
    np.divide(numerator, denominator, out=quotient, where=sound)
    return quotient


def reciprocal(values: npt.NDArray[np.floating[Any]]) -> Floats:
    return divide(np.ones_like(values), values)


def extreme(values: Floats) -> Floats:
    """The value of the largest magnitude along the last axis, with its sign; the axis is kept."""
    return np.take_along_axis(values, np.abs(values).argmax(axis=-1, keepdims=True), axis=-1)


def levels(values: Floats, lowest: int, highest: int) -> Floats:
    return np.clip(np.rint(values), lowest, highest)


def truncated(values: Floats, highest: int) -> Bytes:
    """ggml's reference rounding of values that already carry + 0.5."""
    return np.clip(np.trunc(values), 0, highest).astype(np.uint8)


def _sum(values: Floats) -> Floats:
    total: Floats = values.sum(axis=-1, keepdims=True)
    return total


def fit_affine(values: Floats, highest: int) -> tuple[Floats, Floats]:
    """`scale, offset` ≥ 0 with scale * q - offset ≈ values over the last axis (kept), q in 0..highest.

    For each candidate scale the values are rounded, then scale and offset solved by least squares.
    """
    lowest_value = np.minimum(values.min(axis=-1, keepdims=True), 0)
    span = values.max(axis=-1, keepdims=True) - lowest_value
    best_scale, best_offset = span / highest, -lowest_value
    best_error = np.full_like(span, np.inf)
    for candidate in _CANDIDATES:
        q = levels((values - lowest_value) * divide(highest + candidate, span), 0, highest)
        scale, offset = _solve_affine(values, q)
        error = _sum(np.square(scale * q - offset - values))
        better = (error < best_error) & (scale > 0)
        best_scale, best_offset = np.where(better, scale, best_scale), np.where(better, offset, best_offset)
        best_error = np.where(better, error, best_error)
    return best_scale, best_offset


def _solve_affine(values: Floats, q: Floats) -> tuple[Floats, Floats]:
    sum_q, sum_qq, sum_x, sum_qx = _sum(q), _sum(q * q), _sum(values), _sum(q * values)
    determinant = values.shape[-1] * sum_qq - sum_q * sum_q
    scale = divide(values.shape[-1] * sum_qx - sum_q * sum_x, determinant)
    offset = divide(sum_q * sum_qx - sum_qq * sum_x, determinant)
    through_zero = offset < 0  # the formats can only subtract
    return np.where(through_zero, divide(sum_qx, sum_qq), scale), np.maximum(offset, 0)


def fit_symmetric(values: Floats, half: int) -> Floats:
    """A signed `scale` with scale * q ≈ values over the last axis (kept), q in -half..half - 1."""
    largest = extreme(values)
    best_scale, best_gain = np.zeros_like(largest), np.zeros_like(largest)
    for candidate in _CANDIDATES:
        q = levels(values * divide(-half - candidate, largest), -half, half - 1)
        sum_qx, sum_qq = _sum(q * values), _sum(q * q)
        scale = divide(sum_qx, sum_qq)
        gain = scale * sum_qx  # what the fit takes off the squared error
        best_scale = np.where(gain > best_gain, scale, best_scale)
        best_gain = np.maximum(gain, best_gain)
    return best_scale
