"""A linear by cuBLAS, which is faster for many tokens, and whose sums depend on how many there are."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from roseinfer.backends.cuda.formats import PackedMatrix

CHUNK_TOKENS = 1024  # at a time: results lie in memory that nothing else has
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
    for first in range(0, x.shape[0], CHUNK_TOKENS):
        part = slice(first, first + CHUNK_TOKENS)
        kept = None if residual is None else residual[part]
        out[part].copy_(_linear(x[part], weight, bias, kept, activation, gated))


def _linear(
    x: torch.Tensor,
    weight: PackedMatrix,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    activation: str,
    gated: bool,
) -> torch.Tensor:
    y = _product(x.to(weight.dtype), weight.arrays[0])
    if bias is not None:
        y += bias
    if gated:
        gate, up = y.chunk(2, dim=1)
        y = _ACTIVATIONS[activation](gate) * up
    elif activation:
        y = _ACTIVATIONS[activation](y)
    if residual is not None:
        y = y + residual
    return y


def _product(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """x · matrixᵀ in float32: sums are not rounded to what was multiplied."""
    if x.device.type == "cuda" and x.dtype != torch.float32:
        return torch.mm(x, matrix.T, out_dtype=torch.float32)
    return x.float() @ matrix.float().T
