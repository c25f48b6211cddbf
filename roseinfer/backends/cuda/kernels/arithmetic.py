"""Rounding and products that mean the same on a GPU and in Triton's interpreter.

The interpreter cuts float32 off where hardware rounds it to bfloat16, and multiplies bfloat16's bits as integers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


def element_type(dtype: torch.dtype) -> tl.dtype:
    """The same type as kernels name it."""
    return getattr(tl, str(dtype).removeprefix("torch."))


@triton.jit
def cast(x, DTYPE: tl.constexpr):
    """`x` in DTYPE, to nearest, ties to even."""
    if _INTERPRETED and tl.bfloat16 == DTYPE and x.dtype != tl.bfloat16:
        bits = x.to(tl.float32).to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        return rounded.to(tl.float32, bitcast=True).to(tl.bfloat16)
    return x.to(DTYPE)


@triton.jit
def dot(a, b, accumulator):
    """accumulator + a · b, in float32; a and b of one dtype."""
    if _INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), accumulator, input_precision="ieee")
    return tl.dot(a, b, accumulator, input_precision="ieee")
