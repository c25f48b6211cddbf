"""What each op kind means, in torch. Every function keeps the dtype and the device of its input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from roseinfer.graph import RopeSpec

ACTIVATIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


def embedding(ids: Tensor, weight: Tensor, scale: float = 1.0) -> Tensor:
    x = F.embedding(ids, weight)  # [T, width]
    return x if scale == 1.0 else x * torch.tensor(scale, dtype=x.dtype, device=x.device)


def rms_norm(x: Tensor, weight: Tensor, eps: float, num_heads: int) -> Tensor:
    heads = x.unflatten(-1, (num_heads, -1))  # [rows, H, D]
    mean_square = heads.square().mean(dim=-1, keepdim=True)
    return (heads * torch.rsqrt(mean_square + eps) * weight).flatten(-2)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), weight, bias, eps)


def rope(x: Tensor, positions: Tensor, spec: RopeSpec, num_heads: int) -> Tensor:
    """Turns the first 2 * len(inv_freq) features of each head of x [T, H * D]; angles are computed in float64."""
    half = len(spec.inv_freq)
    inv_freq = torch.tensor(spec.inv_freq, dtype=torch.float64, device=x.device)
    angles = positions.double()[:, None, None] * inv_freq  # [T, 1, half]
    cos, sin = ((f(angles) * spec.scale).to(x.dtype) for f in (torch.cos, torch.sin))
    first, second, rest = x.unflatten(-1, (num_heads, -1)).tensor_split((half, 2 * half), dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1).flatten(-2)


def attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scale: float) -> Tensor:
    """q [T, H, D] over k, v [S, KV, D], where `visible` [T, S] says which keys a query sees; [T, H * D]."""
    group = q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(group, dim=1) for t in (k, v))
    scores = torch.einsum("thd,shd->hts", q, k) * scale
    weights = scores.masked_fill(~visible, -torch.inf).softmax(dim=-1)
    return torch.einsum("hts,shd->thd", weights, v).flatten(-2)
