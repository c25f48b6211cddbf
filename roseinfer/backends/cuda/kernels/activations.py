"""Activation functions of float32, as parts of kernels."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _times_sigmoid(x, y):
    """x / (1 + exp(-y)); the exponential never overflows."""
    e = tl.exp(-tl.abs(y))
    return tl.where(y >= 0, x, x * e) / (1.0 + e)


@triton.jit
def activated(x, KIND: tl.constexpr):
    """`x` for "", else silu, gelu (by the error function) or gelu_tanh of x."""
    if KIND == "silu":
        y = _times_sigmoid(x, x)
    elif KIND == "gelu":
        y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif KIND == "gelu_tanh":
        # (1 + tanh(z)) / 2 is the sigmoid of 2 z.
        y = _times_sigmoid(x, 1.5957691216057308 * (x + 0.044715 * x * x * x))
    else:
        tl.static_assert(KIND == "")
        y = x
    return y
