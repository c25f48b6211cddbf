"""Parts of the tiles of all formats: loads of whole rows, small integers out of larger ones, and as floats."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_columns(array, rows, stride, step, WIDTH: tl.constexpr):
    """array[rows, step * WIDTH : (step + 1) * WIDTH] of rows of `stride`, zeros behind them.

    How wide loads are depends on what the compiler can tell about `stride`: n // 32 * 16 divides by 16, n // 2 may not.
    """
    columns = step * WIDTH + tl.arange(0, WIDTH)
    offsets = rows[:, None].to(tl.int64) * stride + columns[None, :]
    return tl.load(array + offsets, mask=(columns < stride)[None, :], other=0)


@triton.jit
def interleave(even, odd):
    """[rows, n] twice → [rows, 2 n], in turns."""
    return tl.reshape(tl.join(even, odd), (even.shape[0], 2 * even.shape[1]))


@triton.jit
def spread(values, SIZE: tl.constexpr):
    """[rows, n] → [rows, n * SIZE], each value SIZE times."""
    repeated = tl.broadcast_to(values[:, :, None], (values.shape[0], values.shape[1], SIZE))
    return tl.reshape(repeated, (values.shape[0], values.shape[1] * SIZE))


@triton.jit
def as_float(q):
    """q < 2**23 as float32: the bits of 2**23 + q, less 2**23. Both steps run at full rate, conversions do not."""
    return (q.to(tl.int32) | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0


@triton.jit
def half_as_float(bits):
    """The float16 in the low half of an int32, as float32."""
    return (bits & 0xFFFF).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def nibbles(packed):
    """[rows, n] bytes → the [rows, 2 n] values in them as float32; byte j holds values 2 j (low) and 2 j + 1."""
    return as_float(interleave(packed & 15, packed >> 4))


@triton.jit
def halves(words):
    """[rows, n] int32 → the [rows, 2 n] float16 in them as float32."""
    return half_as_float(interleave(words, words >> 16))
