"""dense: the values [rows, K] in the compute dtype."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from roseinfer.backends.cuda.formats._unpack import load_columns
from roseinfer.backends.cuda.kernels.arithmetic import cast
from roseinfer.checkpoints.tensor import Tensor


def pack(matrix: Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return (torch.tensor(matrix.numpy()).to(dtype),)


@triton.jit
def tile(values, a1, a2, a3, rows, k0, num_columns, BLOCK_K: tl.constexpr, DTYPE: tl.constexpr):
    return cast(load_columns(values, rows, num_columns, k0 // BLOCK_K, BLOCK_K), DTYPE)
