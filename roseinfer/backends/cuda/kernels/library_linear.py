"""A linear by cuBLAS, which is faster for many tokens, and whose sums depend on how many there are."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from roseinfer.backends.cuda.formats import PackedMatrix

MIN_TOKENS = 256  # below it the split kernels are at the memory's speed anyway

_ACTIVATIONS = {"silu": F.silu, "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh")}


def is_worth_it(num_tokens: int) -> bool:
    return num_tokens >= MIN_TOKENS


def library_linear(
    x: torch.Tensor,
    weight: PackedMatrix,
    out: torch.Tensor,
    *,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    activation: str,
    gated: bool,
) -> None:
    """What `linear` computes, for a dense matrix: x [T, K], out [T, N] or, gated, [T, N / 2]."""
    y = F.linear(x.to(weight.dtype), weight.arrays[0]).float()
    if bias is not None:
        y += bias
    if gated:
        gate, up = y.chunk(2, dim=1)
        y = _ACTIVATIONS[activation](gate) * up
    elif activation:
        y = _ACTIVATIONS[activation](y)
    if residual is not None:
        y = y + residual
    out.copy_(y)
